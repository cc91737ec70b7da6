// SPDX-License-Identifier: Apache-2.0
// Inside nccl.c and nccl_calls.c only: communicators of NCCL, and what surrounds every call over them.
#ifndef TS_COMM_NCCL_PRIVATE_H
#define TS_COMM_NCCL_PRIVATE_H

#include <nccl.h>

#include "core/comm/request.h"
#include "core/kernels/cuda/recording.h"

// What goes to one rank, and comes from it.
typedef struct ts_nccl_message {
    const char *out;
    char *in;
    size_t out_bytes, in_bytes;
} ts_nccl_message;

struct ts_nccl {
    ncclComm_t comm;
    bool ordered;                         // F32, F64 and whole numbers are summed by us, as BF16 always is
    ts_nccl_message *messages;            // [size] of the call under way
    struct ts_nccl_registration *blocks;  // memory that is registered
    char name[TS_WATCH_NAME_BYTES];
    ts_nccl *next;
};

// Waits until NCCL has taken a call in: its result, or TS_EPEER with NCCL's words.
int ts_nccl_check(const ts_nccl *n, ncclResult_t code, const char *call);
#define TS_NCCL(n, call) TS_TRY(ts_nccl_check((n), (call), #call))

// Before every call: the communication stream waits for the kernels so far. After a blocking one ts_cuda_join follows,
// after a started one this: kernels wait for it in ts_wait.
int ts_nccl_enter(const ts_comm *comm, const void *a, const void *b);
int ts_nccl_leave_started(ts_comm *comm, ts_collective kind, ts_request **out);

extern const ts_transport ts_nccl_transport;

#endif
