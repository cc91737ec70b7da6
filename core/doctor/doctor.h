// SPDX-License-Identifier: Apache-2.0
// tessera doctor: what this program and this machine offer each other, and what stands in the way, with the remedy.
#ifndef TS_DOCTOR_DOCTOR_H
#define TS_DOCTOR_DOCTOR_H

#include "core/comm/comm.h"

// Collective over `world`; rank 0 prints what it sees of its own machine, and how the ranks lie on it. TS_EPEER when a
// device is asked for that cannot be used, else a problem is told and the command succeeds.
int ts_command_doctor(ts_comm *world, int argc, char **argv);

#endif
