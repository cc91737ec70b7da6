// SPDX-License-Identifier: Apache-2.0
// Chooses the CPU table: one for each instruction-set level, filled on first use.
#include <string.h>

#include "core/base/status.h"
#include "core/kernels/cpu/cpu.h"

static const char *const names[TS_ISA_COUNT] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
static ts_kernels tables[TS_ISA_COUNT];

static int parse(const char *name, ts_isa *out) {
    *out = ts_cpu_isa_available();
    if (!name || strcmp(name, "auto") == 0) {
        return 0;
    }
    for (int level = 0; level < TS_ISA_COUNT; level++) {
        if (strcmp(name, names[level]) == 0) {
            if ((ts_isa)level > *out) {
                return TS_FAIL(TS_EUSAGE, "instruction set %s: this processor has %s at most; use \"auto\"", name,
                               names[*out]);
            }
            *out = (ts_isa)level;
            return 0;
        }
    }
    return TS_FAIL(TS_EUSAGE, "instruction set %s: unknown; one of auto, generic, avx2, avx512, avx512bf16, amx", name);
}

const ts_kernels *ts_cpu_table(void) {
    ts_kernels *k = &tables[ts_cpu_isa()];
    if (!k->name) {
        ts_cpu_fill_plain(k);
        ts_cpu_fill_flat(k);
        if (ts_cpu_isa() >= TS_ISA_AVX512BF16) {
            ts_cpu_fill_avx512bf16(k);
        } else if (ts_cpu_isa() == TS_ISA_AVX512) {
            ts_cpu_fill_avx512(k);
        } else if (ts_cpu_isa() == TS_ISA_AVX2) {
            ts_cpu_fill_avx2(k);
        } else {
            ts_cpu_fill_generic(k);
        }
        k->gemm = ts_cpu_gemm;
        k->attention_forward = ts_cpu_attention_forward;
        k->attention_backward = ts_cpu_attention_backward;
        k->attention_merge = ts_cpu_attention_merge;
        k->conv3d_forward = ts_cpu_conv3d_forward;
        k->conv3d_backward = ts_cpu_conv3d_backward;
        k->device = &ts_device_host;
        k->name = "cpu";
    }
    return k;
}

// Measured, and held by tests/test_products_fixed.c: below AVX-512 oneDNN cuts k by the sizes of the other dimensions,
// and products of one row or column take another path.
bool ts_kernels_cpu_products_fixed(ts_dtype operands) {
    return ts_cpu_isa() >= (operands == TS_BF16 ? TS_ISA_AVX512BF16 : TS_ISA_AVX512);
}

int ts_kernels_cpu(const ts_kernels **out, const char *instruction_set) {
    ts_isa level;
    TS_TRY(parse(instruction_set, &level));
    ts_cpu_isa_set(level);
    *out = ts_cpu_table();
    return 0;
}

const char *ts_kernels_cpu_instruction_set(void) {
    return names[ts_cpu_isa()];
}
