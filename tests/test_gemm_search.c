// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1 timeout=60 backend=cuda
// The algorithms of the GPU's matrix products: searched, kept in a file that processes share, and refused when damaged.
#include <sys/wait.h>
#include <unistd.h>

#include "core/base/file.h"
#include "core/base/json.h"
#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

enum { SIDE = 48 };

// C += A B with A = B = 1, in a process of its own, whose GPU is opened anew: its exit status, 0 when C is right.
static int multiply(int64_t m, bool accumulate) {
    const ts_kernels *k;
    float host[SIDE * SIDE];
    if (ts_kernels_open(&k, "cuda", 0)) {
        return 2;
    }
    for (int i = 0; i < SIDE * SIDE; i++) {
        host[i] = 1;
    }
    float *x = k->device->allocate(sizeof host), *c = k->device->allocate(sizeof host);
    const ts_gemm p = {.m = m,
                       .n = SIDE,
                       .k = SIDE,
                       .a = x,
                       .b = x,
                       .c = c,
                       .lda = SIDE,
                       .ldb = SIDE,
                       .ldc = SIDE,
                       .accumulate = accumulate};
    int wrong = !x || !c || k->device->upload(x, host, sizeof host) || k->device->upload(c, host, sizeof host);
    for (int again = 0; again < 2; again++) {
        wrong = wrong || k->gemm(&p);
    }
    wrong = wrong || k->device->download(host, c, sizeof host);
    for (int64_t i = 0; !wrong && i < m * SIDE; i++) {
        wrong = host[i] != (accumulate ? 1 + 2 * SIDE : SIDE);
    }
    return wrong;
}

static void multiply_apart(int64_t m, bool accumulate) {
    const pid_t child = fork();
    if (child == 0) {
        _exit(multiply(m, accumulate));
    }
    int status = -1;
    CHECK(child > 0 && waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
}

// The path of the one file there; products in it, or -1 when it is no file of ours.
static int64_t products_in(const char *folder, char path[TS_PATH_BYTES]) {
    char **names;
    int64_t count, products = 0;
    json_t *file = NULL;
    if (ts_folder_list(folder, &names, &count)) {
        return -1;
    }
    CHECK(count == 1 && !strncmp(names[0], "gemm-", 5));
    CHECK_OK(ts_path_join(path, TS_PATH_BYTES, folder, names[0]));
    ts_folder_list_free(names, count);
    if (ts_json_read(path, 1 << 20, &file)) {
        return -1;
    }
    const json_t *map = json_object_get(file, "products");
    products = json_is_object(map) ? (int64_t)json_object_size(map) : -1;
    json_decref(file);
    return products;
}

static void check_file(const char *base) {
    char folder[TS_PATH_BYTES], path[TS_PATH_BYTES];
    CHECK_OK(ts_path_join(folder, sizeof folder, base, "tessera"));
    multiply_apart(16, false);
    CHECK(products_in(folder, path) == 1);
    multiply_apart(32, true);  // beside C, which it adds to once
    CHECK(products_in(folder, path) == 2);
    multiply_apart(16, false);
    CHECK(products_in(folder, path) == 2);

    static const char *const damaged[] = {"{\"gpu\": \"", "[]",
                                          "{\"gpu\": \"other\", \"cublaslt\": 1, \"products\": {}}", "{\"gpu\": 1}"};
    for (size_t i = 0; i < sizeof damaged / sizeof *damaged; i++) {
        CHECK_OK(ts_file_write_atomic(path, damaged[i], strlen(damaged[i])));
        multiply_apart(16, false);
        CHECK(products_in(folder, path) == 1);
    }

    setenv("TESSERA_GEMM_SEARCH", "off", 1);
    multiply_apart(48, false);
    CHECK(products_in(folder, path) == 1);
    setenv("TESSERA_GEMM_SEARCH", "on", 1);
}

// Several at once do not lose what the others found.
static void check_together(const char *base) {
    enum { PROCESSES = 4 };
    char folder[TS_PATH_BYTES], path[TS_PATH_BYTES];
    pid_t child[PROCESSES];
    CHECK_OK(ts_path_join(folder, sizeof folder, base, "tessera"));
    const int64_t before = products_in(folder, path);
    for (int i = 0; i < PROCESSES; i++) {
        child[i] = fork();
        if (child[i] == 0) {
            _exit(multiply(17 + i / 2, false));  // in pairs
        }
    }
    for (int i = 0; i < PROCESSES; i++) {
        int status = -1;
        CHECK(waitpid(child[i], &status, 0) == child[i] && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    CHECK(products_in(folder, path) == before + PROCESSES / 2);
}

// Asked in a process of its own: a GPU that is opened does not survive a fork.
static bool has_gpu(void) {
    const pid_t child = fork();
    if (child == 0) {
        _exit(ts_kernels_gpus() > 0);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 1;
}

int main(void) {
    if (!ts_kernels_have_cuda() || !has_gpu()) {
        ts_test_skip("no GPU, real or imitated");
    }
    char base[] = "/tmp/tessera-gemm-XXXXXX";
    CHECK(mkdtemp(base));
    setenv("XDG_CACHE_HOME", base, 1);
    setenv("TESSERA_GEMM_SEARCH", "on", 1);
    check_file(base);
    check_together(base);
    CHECK_OK(ts_folder_remove(base));
    return ts_test_end();
}
