// SPDX-License-Identifier: Apache-2.0
// Which of cuBLASLt's algorithms makes a product: its proposals in the order of its own estimate, or as timed.
#include <stdlib.h>
#include <string.h>

#include "core/base/log.h"
#include "core/kernels/cuda/gemm.h"
#include "core/kernels/cuda/recording.h"

enum { PROPOSALS = 16, ROUNDS = 2, RUNS = 3 };

// The first proposal stays unless another is quicker by this much: more than times of the same work differ.
static const float worth = 0.97f;
// A proposal that takes this many times the quickest so far is not run again.
static const float hopeless = 1.5f;

static bool searches;

void ts_gemm_search_open(void) {
    const char *text = getenv("TESSERA_GEMM_SEARCH");
    searches = !text || strcmp(text, "off") != 0;
    if (text && searches && strcmp(text, "on") != 0) {
        TS_WARN("TESSERA_GEMM_SEARCH=%.40s: is on or off; taken as on", text);
    }
    if (searches) {
        ts_gemm_cache_open();
    }
}

// ---- proposals

typedef struct proposal {
    cublasLtMatmulAlgo_t algorithm;
    size_t workspace;
} proposal;

static int prefer(cublasLtMatmulPreference_t preference, cublasLtMatmulPreferenceAttributes_t what, const void *value,
                  size_t bytes) {
    TS_CUBLAS(cublasLtMatmulPreferenceSetAttribute(preference, what, value, bytes));
    return TS_OK;
}

static int set_preference(cublasLtMatmulPreference_t preference, const ts_gemm_key *key) {
    const uint64_t workspace = TS_GEMM_WORKSPACE;
    // Where k is cut its parts stay in f32 and are added in order.
    const uint32_t reductions = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    const uint32_t a = (uint32_t)key->align_a, b = (uint32_t)key->align_b, c = (uint32_t)key->align_c;
    TS_TRY(prefer(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, &workspace, sizeof workspace));
    TS_TRY(prefer(preference, CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, &reductions, sizeof reductions));
    TS_TRY(prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, &b, sizeof b));
    TS_TRY(prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, &a, sizeof a));
    TS_TRY(prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, &c, sizeof c));
    return prefer(preference, CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, &c, sizeof c);
}

// Up to `wanted` proposals, the best estimate first; none when the library refuses the product.
static int propose(const ts_gemm_plan *plan, proposal *out, int wanted, int *count) {
    cublasLtMatmulHeuristicResult_t result[PROPOSALS];
    cublasLtMatmulPreference_t preference;
    int found = 0;
    *count = 0;
    TS_CUBLAS(cublasLtMatmulPreferenceCreate(&preference));
    int status = set_preference(preference, &plan->key);
    if (!status) {
        const cublasStatus_t told = cublasLtMatmulAlgoGetHeuristic(
            ts_gemm_handle(), plan->operation, plan->b, plan->a, plan->c, plan->c, preference, wanted, result, &found);
        const bool refused = told == CUBLAS_STATUS_NOT_SUPPORTED || told == CUBLAS_STATUS_INVALID_VALUE;
        found = told == CUBLAS_STATUS_SUCCESS ? found : 0;
        status = refused ? TS_OK : ts_cublas_check(told, "cublasLtMatmulAlgoGetHeuristic");
    }
    (void)cublasLtMatmulPreferenceDestroy(preference);
    for (int i = 0; i < found; i++) {
        if (result[i].state == CUBLAS_STATUS_SUCCESS && result[i].workspaceSize <= TS_GEMM_WORKSPACE) {
            out[(*count)++] = (proposal){result[i].algo, result[i].workspaceSize};
        }
    }
    return status;
}

// ---- times

typedef struct trial {
    const ts_gemm_plan *plan;
    const ts_gemm *product;
    void *d;
    cudaEvent_t begin, end;
} trial;

// Milliseconds a run; *ran false when the library refuses to.
static int time_runs(const trial *t, const proposal *candidate, int runs, float *time, bool *ran) {
    TS_CUDA(cudaEventRecord(t->begin, ts_cuda_stream()));
    for (int i = 0; i < runs; i++) {
        if (ts_gemm_run(t->plan, t->product, t->d, &candidate->algorithm, candidate->workspace)) {
            *ran = false;
            return TS_OK;
        }
    }
    TS_CUDA(cudaEventRecord(t->end, ts_cuda_stream()));
    TS_CUDA(cudaEventSynchronize(t->end));
    TS_CUDA(cudaEventElapsedTime(time, t->begin, t->end));
    *time /= (float)runs;
    *ran = true;
    return TS_OK;
}

// The least time of a run, after one that loads the kernel.
static int time_candidate(const trial *t, const proposal *candidate, float quickest, float *least, bool *ran) {
    float time;
    TS_TRY(time_runs(t, candidate, 1, &time, ran));
    if (*ran) {
        TS_TRY(time_runs(t, candidate, 1, least, ran));
    }
    for (int round = 0; *ran && round < ROUNDS && *least < hopeless * quickest; round++) {
        TS_TRY(time_runs(t, candidate, RUNS, &time, ran));
        *least = time < *least ? time : *least;
    }
    return TS_OK;
}

// *best -1: none runs.
static int time_all(const trial *t, const proposal *candidate, int count, int *best) {
    float quickest = 1e30f;
    *best = -1;
    for (int i = 0; i < count; i++) {
        float least = 1e30f;
        bool ran;
        TS_TRY(time_candidate(t, &candidate[i], quickest, &least, &ran));
        if (ran && (*best < 0 || least < quickest * (*best == 0 ? worth : 1.0f))) {
            quickest = least;
            *best = i;
        }
    }
    return TS_OK;
}

// A product that adds to C is tried out beside it; others may write C, since the product itself follows.
static int search(const ts_gemm_plan *plan, const ts_gemm *p, const proposal *candidate, int count, int *best) {
    trial t = {.plan = plan, .product = p, .d = p->c};
    if (p->accumulate) {
        t.d = ts_cuda_scratch(TS_CUDA_SCRATCH_RESULT, (size_t)(p->m * p->ldc) * sizeof(float));
        if (!t.d) {
            return TS_ERESOURCE;
        }
    }
    TS_CUDA(cudaEventCreate(&t.begin));
    int status = ts_cuda_check(cudaEventCreate(&t.end), "cudaEventCreate");
    if (!status) {
        status = time_all(&t, candidate, count, best);
        (void)cudaEventDestroy(t.end);
    }
    (void)cudaEventDestroy(t.begin);
    return status;
}

// ---- choosing

static void take(ts_gemm_plan *plan, const proposal *chosen) {
    plan->algorithm = chosen->algorithm;
    plan->workspace = chosen->workspace;
    plan->possible = true;
}

// What was found before, if the library still accepts it: a file may have been changed by hand.
static bool take_known(ts_gemm_plan *plan) {
    const cublasLtMatmulAlgo_t *known = ts_gemm_cache_find(&plan->key);
    cublasLtMatmulHeuristicResult_t result;
    if (!known) {
        return false;
    }
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(ts_gemm_handle(), plan->operation, plan->b, plan->a, plan->c, plan->c, known, &result);
    if (status != CUBLAS_STATUS_SUCCESS || result.state != CUBLAS_STATUS_SUCCESS ||
        result.workspaceSize > TS_GEMM_WORKSPACE) {
        ts_gemm_cache_refuse(&plan->key);
        return false;
    }
    take(plan, &(proposal){*known, result.workspaceSize});
    return true;
}

static int choose_first(ts_gemm_plan *plan) {
    proposal first;
    int count;
    TS_TRY(propose(plan, &first, 1, &count));
    if (count == 0) {
        return TS_OK;
    }
    take(plan, &first);
    return ts_gemm_cache_add(&plan->key, &first.algorithm, false);
}

static int choose_fastest(ts_gemm_plan *plan, const ts_gemm *p, bool in_file) {
    proposal candidate[PROPOSALS];
    int count, best = 0;
    TS_TRY(propose(plan, candidate, PROPOSALS, &count));
    if (count > 1) {
        TS_TRY(search(plan, p, candidate, count, &best));
    }
    if (count == 0 || best < 0) {
        return TS_OK;
    }
    take(plan, &candidate[best]);
    return ts_gemm_cache_add(&plan->key, &candidate[best].algorithm, in_file);
}

int ts_gemm_choose(ts_gemm_plan *plan, const ts_gemm *p) {
    if (!searches) {
        return choose_first(plan);
    }
    if (take_known(plan)) {
        return TS_OK;
    }
    if (ts_cuda_is_recording()) {
        return choose_first(plan);
    }
    const bool locked = ts_gemm_cache_lock();
    const int status = locked && take_known(plan) ? TS_OK : choose_fastest(plan, p, locked);
    if (locked) {
        ts_gemm_cache_unlock();
    }
    return status;
}
