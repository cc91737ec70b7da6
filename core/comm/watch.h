// SPDX-License-Identifier: Apache-2.0
// The watch: a thread on every rank that tells rank 0, over a socket of its own, that the rank lives and what it is
// doing. MPI waits for ever for a rank that is stopped, cut off or at another call; the watch ends the job instead.
//
//   silence    a rank is stopped, its host is frozen, or the network between it and rank 0 is cut; rank 0's own
//              silence is found by the others
//   mismatch   two ranks of a communicator give its call of the same number another kind, size, type, root or step
//   deadlock   ranks wait for each other in different calls, or one has come to its end while others wait for it
//   loss       the process of a rank is gone and the launcher has not noticed
//   device     NCCL has failed, which who waits for the device would not come to know
//
// The job then ends with TS_EPEER as its exit code and one line on standard error, such as
//   [rank 2/4 host-b] step 117: silent for 30 s; last seen in all-gather #2031 on the tensor axis (1.2 MiB)
// A rank that computes or writes for hours is no failure as long as its heart beats, nor are those that wait for it.
//
// The ranks publish what they do by relaxed atomic stores; the thread makes no MPI call. The sockets carry no more
// than a few kB a second from each rank.
#ifndef TS_COMM_WATCH_H
#define TS_COMM_WATCH_H

#include "core/comm/comm.h"

typedef struct ts_watch_params {
    double timeout;   // seconds of silence, or of waiting for each other, that end the job; from 1, or 0: no watch
    double interval;  // seconds between heartbeats; 0: a tenth of the time-out, at most 1
    // Where rank 0 listens: the name of an interface ("ib0") or one of the host's addresses. NULL or "": at all of
    // them; each rank takes the first that answers.
    const char *network;
} ts_watch_params;

// Collective; nothing for a lone rank. One watch a program: once it runs, opening it again changes nothing. TS_EUSAGE
// for a network that rank 0's host does not have, TS_EPEER, on all ranks, when one cannot reach rank 0 within 20 s.
int ts_watch_open(ts_comm *world, const ts_watch_params *params);
// Not collective. ts_world_close calls it when all ranks have met.
void ts_watch_close(void);

// The step that this rank is in, from now on; every rank must call it at the same place of its calls.
void ts_watch_step(int64_t step);
// What this rank does outside of collectives, "writing the checkpoint"; NULL for nothing in particular. A literal:
// the text must live until the next note.
void ts_watch_note(const char *what);

#endif
