// SPDX-License-Identifier: Apache-2.0
// What the system says of memory, in bytes. Linux; -1 where it says nothing.
#ifndef TS_BASE_MEMORY_H
#define TS_BASE_MEMORY_H

#include <stdint.h>

int64_t ts_memory_resident(void);  // of this process, now
int64_t ts_memory_peak(void);      // the most it was
// What all processes of this machine together may still take: what the system can spare, or what is left below the
// limit of this process's control group (a container's limit), whichever is less.
int64_t ts_memory_available(void);

#endif
