// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60
// Where ts_kernels_cpu_products_fixed says so, an element of a product has the bits that it has in a large one, however
// few rows and columns are asked for and on one thread or two: what lets ranks share rows and columns and still give
// the bits of one rank.
#include <sys/wait.h>
#include <unistd.h>

#include "tests/kernels_test.h"

enum { ROWS = 640, COLUMNS = 576 };

static const int64_t DEPTHS[] = {16, 28, 50, 84, 128, 384, 1536, 5120};
static const int64_t ROW_COUNTS[] = {1, 2, 5, 17, 75, 160, 640};
static const int64_t COLUMN_COUNTS[] = {1, 7, 28, 64, 84, 192, 576};
#define COUNT(array) (sizeof(array) / sizeof *(array))

typedef struct operands {
    ts_dtype dtype;
    int64_t k;
    void *a, *b;  // [ROWS, k], [COLUMNS, k]
    float *bias;  // [COLUMNS]
} operands;

static void multiply(const ts_kernels *kernels, const operands *o, int64_t m, int64_t n, float *out) {
    const ts_gemm gemm = {.m = m,
                          .n = n,
                          .k = o->k,
                          .a = o->a,
                          .lda = o->k,
                          .b = o->b,
                          .ldb = o->k,
                          .transpose_b = true,
                          .c = out,
                          .ldc = n,
                          .dtype_ab = o->dtype,
                          .dtype_c = TS_F32,
                          .bias = o->bias};
    CHECK_OK(kernels->gemm(&gemm));
}

static void test_depth(const ts_kernels *kernels, ts_dtype dtype, int64_t k) {
    static float whole[ROWS * COLUMNS], part[ROWS * COLUMNS];
    const operands o = {dtype, k, test_random(dtype, ROWS * k, 1), test_random(dtype, COLUMNS * k, 1),
                        test_random(TS_F32, COLUMNS, 1)};
    omp_set_num_threads(1);
    multiply(kernels, &o, ROWS, COLUMNS, whole);
    for (int threads = 1; threads <= 2; threads++) {
        omp_set_num_threads(threads);
        for (size_t i = 0; i < COUNT(ROW_COUNTS) * COUNT(COLUMN_COUNTS); i++) {
            const int64_t m = ROW_COUNTS[i / COUNT(COLUMN_COUNTS)], n = COLUMN_COUNTS[i % COUNT(COLUMN_COUNTS)];
            int64_t different = 0;
            multiply(kernels, &o, m, n, part);
            for (int64_t row = 0; row < m; row++) {
                different += memcmp(part + row * n, whole + row * COLUMNS, (size_t)n * sizeof *part) != 0;
            }
            if (different) {
                fprintf(stderr, "%s %s, m %d n %d k %d, %d threads: %d rows differ\n", ts_dtype_name(dtype),
                        ts_kernels_cpu_instruction_set(), (int)m, (int)n, (int)k, threads, (int)different);
            }
            CHECK(different == 0);
        }
    }
    test_free_blocks();
}

// In a process of its own: oneDNN keeps the first instruction set that it is asked for.
static int test_instruction_set(const char *name) {
    const ts_kernels *kernels;
    if (ts_kernels_cpu(&kernels, name)) {
        printf("%s: not on this processor\n", name);
        return 0;
    }
    for (int dtype = TS_F32; dtype <= (int)TS_BF16; dtype++) {
        const bool fixed = ts_kernels_cpu_products_fixed((ts_dtype)dtype);
        printf("%s, %s: products %s\n", name, ts_dtype_name((ts_dtype)dtype), fixed ? "fixed" : "not fixed");
        for (size_t i = 0; i < COUNT(DEPTHS) && fixed; i++) {
            test_depth(kernels, (ts_dtype)dtype, DEPTHS[i]);
        }
    }
    fflush(stdout);
    return ts_test_end();
}

int main(void) {
    static const char *const names[] = {"generic", "avx2", "avx512", "avx512bf16", "amx"};
    for (size_t i = 0; i < COUNT(names); i++) {
        int status = 1;
        const pid_t child = fork();
        if (child == 0) {
            _exit(test_instruction_set(names[i]));
        }
        CHECK(child > 0 && waitpid(child, &status, 0) == child);
        CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    return ts_test_end();
}
