// SPDX-License-Identifier: Apache-2.0
// What this processor and operating system can do, read from CPUID and XCR0.
#include <cpuid.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "core/kernels/cpu/cpu.h"

typedef struct cpuid_leaf {
    uint32_t eax, ebx, ecx, edx;
} cpuid_leaf;

static cpuid_leaf cpuid(uint32_t leaf, uint32_t subleaf) {
    cpuid_leaf r = {0};
    __get_cpuid_count(leaf, subleaf, &r.eax, &r.ebx, &r.ecx, &r.edx);
    return r;
}

// XCR0: which register files the operating system saves.
static uint64_t xgetbv(void) {
    uint32_t low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (uint64_t)high << 32 | low;
}

static bool has(uint64_t value, uint64_t bits) {
    return (value & bits) == bits;
}

// Linux hands out the 8 KiB of tile registers on request only, once per process; threads made later inherit it.
static bool amx_permitted(void) {
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    return syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
}

static ts_isa detect(void) {
    enum { OSXSAVE = 1 << 27, FMA = 1 << 12, F16C = 1 << 29 };             // leaf 1 ecx
    enum { AVX2 = 1 << 5, BMI2 = 1 << 8 };                                 // leaf 7 ebx
    const uint32_t avx512 = 1u << 16 | 1u << 17 | 1u << 30 | 1u << 31;     // F, DQ, BW, VL
    enum { AVX512BF16 = 1 << 5, AMX_BF16 = 1 << 22, AMX_TILE = 1 << 24 };  // leaf 7.1 eax; leaf 7 edx
    enum { YMM = 0x6, ZMM = 0xe6, TILE = 0x60000 };                        // XCR0
    const cpuid_leaf one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
    if (!has(one.ecx, OSXSAVE | FMA | F16C) || !has(seven.ebx, AVX2 | BMI2) || !has(xgetbv(), YMM)) {
        return TS_ISA_GENERIC;
    }
    if (!has(seven.ebx, avx512) || !has(xgetbv(), ZMM)) {
        return TS_ISA_AVX2;
    }
    if (!has(seven_one.eax, AVX512BF16)) {
        return TS_ISA_AVX512;
    }
    if (!has(seven.edx, AMX_BF16 | AMX_TILE) || !has(xgetbv(), TILE) || !amx_permitted()) {
        return TS_ISA_AVX512BF16;
    }
    return TS_ISA_AMX;
}

static atomic_int available = -1, in_use = -1;

ts_isa ts_cpu_isa_available(void) {
    int level = atomic_load(&available);
    if (level < 0) {
        level = (int)detect();
        atomic_store(&available, level);
    }
    return (ts_isa)level;
}

ts_isa ts_cpu_isa(void) {
    const int level = atomic_load_explicit(&in_use, memory_order_relaxed);
    return level < 0 ? ts_cpu_isa_available() : (ts_isa)level;
}

void ts_cpu_isa_set(ts_isa level) {
    atomic_store(&in_use, (int)level);
}
