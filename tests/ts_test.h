// SPDX-License-Identifier: Apache-2.0
// The whole test harness: checks that print and count, and the exit codes ctest reads (1 failed, 77 skipped).
//
// A test program is tests/test_NAME.c with a first-lines comment that CMake reads:
//   // TEST: ranks=1,2,4 timeout=60
// (absent: one rank, 60 s). Each rank count becomes one ctest case, run under mpiexec when above 1.
#ifndef TS_TEST_H
#define TS_TEST_H

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "core/base/status.h"

static int ts_test_failures;

#define CHECK(condition)                                                                                               \
    do {                                                                                                               \
        if (!(condition)) {                                                                                            \
            fprintf(stderr, "%s:%d: failed: %s\n", __FILE__, __LINE__, #condition);                                    \
            ts_test_failures++;                                                                                        \
        }                                                                                                              \
    } while (0)

// A call that must succeed; its error text is printed when it does not.
#define CHECK_OK(call)                                                                                                 \
    do {                                                                                                               \
        const int check_code_ = (call);                                                                                \
        if (check_code_) {                                                                                             \
            fprintf(stderr, "%s:%d: %s gave %d: %s (%s)\n", __FILE__, __LINE__, #call, check_code_, ts_error_text(),   \
                    ts_error_place());                                                                                 \
            ts_test_failures++;                                                                                        \
        }                                                                                                              \
    } while (0)

// A call that must fail with `code` and a message that contains `text`.
#define CHECK_FAILS(call, code, text)                                                                                  \
    do {                                                                                                               \
        const int check_code_ = (call);                                                                                \
        if (check_code_ != (code) || !strstr(ts_error_text(), (text))) {                                               \
            fprintf(stderr, "%s:%d: %s gave %d \"%s\", wanted %d with \"%s\"\n", __FILE__, __LINE__, #call,            \
                    check_code_, ts_error_text(), (code), (text));                                                     \
            ts_test_failures++;                                                                                        \
        }                                                                                                              \
    } while (0)

#define CHECK_NEAR(a, b, tolerance)                                                                                    \
    do {                                                                                                               \
        const double check_a_ = (double)(a), check_b_ = (double)(b);                                                   \
        if (!(fabs(check_a_ - check_b_) <= (double)(tolerance))) {                                                     \
            fprintf(stderr, "%s:%d: %s = %.9g, %s = %.9g, tolerance %g\n", __FILE__, __LINE__, #a, check_a_, #b,       \
                    check_b_, (double)(tolerance));                                                                    \
            ts_test_failures++;                                                                                        \
        }                                                                                                              \
    } while (0)

static inline int ts_test_end(void) {
    return ts_test_failures ? 1 : 0;
}

_Noreturn static inline void ts_test_skip(const char *reason) {
    fprintf(stderr, "SKIP: %s\n", reason);
    exit(77);
}

// The device that this case runs on, as ts_kernels_open names it: "cpu", or "cuda" for an imitated GPU and a real one.
static inline const char *ts_test_backend(void) {
    const char *backend = getenv("TESSERA_BACKEND");
    return backend && *backend && strcmp(backend, "cpu") != 0 ? "cuda" : "cpu";
}

// Folder of the golden files beside the checkout, or a SKIP when they are not there.
static inline const char *ts_test_shared(void) {
    const char *folder = getenv("TESSERA_SHARED");
    if (!folder || !*folder) {
        ts_test_skip("needs the golden files: set TESSERA_SHARED to their folder");
    }
    return folder;
}

#endif
