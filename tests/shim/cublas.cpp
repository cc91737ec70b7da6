// SPDX-License-Identifier: Apache-2.0
// cuBLASLt imitated: products with the epilogues, layouts and refusals that its documentation states, computed with
// plain loops when their stream's turn has come.
#include <cublasLt.h>

#include <cmath>
#include <cstring>
#include <vector>

extern "C" {
#include "core/tensor/tensor.h"
}
#include "tests/shim/multiply.h"
#include "tests/shim/private.h"

using namespace shim;

// ---- descriptions

struct cublasLtContext {
    int unused;
};

struct cublasLtMatrixLayoutOpaque_t {
    cudaDataType_t type;
    cublasLtOrder_t order;
    int64_t rows, columns, ld;
    int64_t batch, batch_offset;

    int64_t elements() const { return ((order == CUBLASLT_ORDER_COL ? columns : rows) - 1) * ld + shortest(); }
    int64_t shortest() const { return order == CUBLASLT_ORDER_COL ? rows : columns; }
    size_t element() const { return type == CUDA_R_16BF ? 2 : 4; }
    bool known() const {
        return (type == CUDA_R_32F || type == CUDA_R_16BF) && rows > 0 && columns > 0 && ld >= shortest() && batch > 0;
    }
};

struct cublasLtMatmulDescOpaque_t {
    cublasComputeType_t compute;
    cudaDataType_t scale;
    int32_t pointer_mode;  // 0: alpha and beta are the host's
    cublasOperation_t op_a, op_b;
    cublasLtEpilogue_t epilogue;
    void *bias;
    void *aux;
    int64_t aux_ld;
    int32_t aux_type, bias_type;  // -1: that of D
};

struct cublasLtMatmulPreferenceOpaque_t {
    uint64_t workspace;
    uint32_t alignment[4];
    uint32_t search, reductions;
};

const char *cublasLtGetStatusName(cublasStatus_t status) {
    switch (status) {
    case CUBLAS_STATUS_SUCCESS:
        return "CUBLAS_STATUS_SUCCESS";
    case CUBLAS_STATUS_INVALID_VALUE:
        return "CUBLAS_STATUS_INVALID_VALUE";
    case CUBLAS_STATUS_NOT_SUPPORTED:
        return "CUBLAS_STATUS_NOT_SUPPORTED";
    case CUBLAS_STATUS_NOT_INITIALIZED:
        return "CUBLAS_STATUS_NOT_INITIALIZED";
    case CUBLAS_STATUS_ALLOC_FAILED:
        return "CUBLAS_STATUS_ALLOC_FAILED";
    default:
        return "CUBLAS_STATUS_EXECUTION_FAILED";
    }
}

const char *cublasLtGetStatusString(cublasStatus_t status) {
    return cublasLtGetStatusName(status);
}

size_t cublasLtGetVersion(void) {
    return 130000;
}

cublasStatus_t cublasLtCreate(cublasLtHandle_t *handle) {
    *handle = new cublasLtContext{};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtDestroy(cublasLtHandle_t handle) {
    delete handle;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t *layout, cudaDataType type, uint64_t rows,
                                          uint64_t columns, int64_t ld) {
    *layout = new cublasLtMatrixLayoutOpaque_t{type, CUBLASLT_ORDER_COL, (int64_t)rows, (int64_t)columns, ld, 1, 0};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutDestroy(cublasLtMatrixLayout_t layout) {
    delete layout;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t *desc, cublasComputeType_t compute, cudaDataType_t scale) {
    *desc = new cublasLtMatmulDescOpaque_t{compute, scale,   0, CUBLAS_OP_N, CUBLAS_OP_N, CUBLASLT_EPILOGUE_DEFAULT,
                                           nullptr, nullptr, 0, -1,          -1};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulDescDestroy(cublasLtMatmulDesc_t desc) {
    delete desc;
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t *preference) {
    *preference = new cublasLtMatmulPreferenceOpaque_t{0, {256, 256, 256, 256}, 0, CUBLASLT_REDUCTION_SCHEME_MASK};
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) {
    delete preference;
    return CUBLAS_STATUS_SUCCESS;
}

// ---- attributes: as many bytes as the attribute has, or an error

template <typename T> static cublasStatus_t set(T &field, const void *value, size_t bytes) {
    if (!value || bytes != sizeof field) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    std::memcpy(&field, value, sizeof field);
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t l, cublasLtMatrixLayoutAttribute_t attribute,
                                                const void *value, size_t bytes) {
    int32_t batch = 0;
    cublasStatus_t status = CUBLAS_STATUS_INVALID_VALUE;
    switch (attribute) {
    case CUBLASLT_MATRIX_LAYOUT_TYPE:
        return set(l->type, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ORDER:
        return set(l->order, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_ROWS:
        return set(l->rows, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_COLS:
        return set(l->columns, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_LD:
        return set(l->ld, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET:
        return set(l->batch_offset, value, bytes);
    case CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT:
        status = set(batch, value, bytes);
        l->batch = batch;
        return status;
    }
    return status;
}

cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t d, cublasLtMatmulDescAttributes_t attribute,
                                              const void *value, size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_DESC_COMPUTE_TYPE:
        return set(d->compute, value, bytes);
    case CUBLASLT_MATMUL_DESC_SCALE_TYPE:
        return set(d->scale, value, bytes);
    case CUBLASLT_MATMUL_DESC_POINTER_MODE:
        return set(d->pointer_mode, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSA:
        return set(d->op_a, value, bytes);
    case CUBLASLT_MATMUL_DESC_TRANSB:
        return set(d->op_b, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE:
        return set(d->epilogue, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_POINTER:
        return set(d->bias, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER:
        return set(d->aux, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD:
        return set(d->aux_ld, value, bytes);
    case CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_DATA_TYPE:
        return set(d->aux_type, value, bytes);
    case CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE:
        return set(d->bias_type, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p,
                                                    cublasLtMatmulPreferenceAttributes_t attribute, const void *value,
                                                    size_t bytes) {
    switch (attribute) {
    case CUBLASLT_MATMUL_PREF_SEARCH_MODE:
        return set(p->search, value, bytes);
    case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK:
        return set(p->reductions, value, bytes);
    case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES:
        return set(p->workspace, value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES:
        return set(p->alignment[0], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES:
        return set(p->alignment[1], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES:
        return set(p->alignment[2], value, bytes);
    case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES:
        return set(p->alignment[3], value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

// ---- algorithms
// They differ in the workspace they ask for alone; data: a mark, the number, the workspace, the alignment needed.

namespace {
constexpr uint64_t MARK = 0x74737368696d6c74;
constexpr int ALGORITHMS = 4;
}  // namespace

static cublasStatus_t check(cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                            cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d) {
    if (!desc || !a || !b || !c || !d || !a->known() || !b->known() || !c->known() || !d->known()) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const bool ta = desc->op_a != CUBLAS_OP_N, tb = desc->op_b != CUBLAS_OP_N;
    const int64_t m = ta ? a->columns : a->rows, k = ta ? a->rows : a->columns;
    if ((tb ? b->columns : b->rows) != k || d->rows != m || d->columns != (tb ? b->rows : b->columns) ||
        c->rows != d->rows || c->columns != d->columns) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const bool batches_fit = a->batch == d->batch && b->batch == d->batch && c->batch == d->batch;
    if (!batches_fit) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    // A and B of one type; f32 to f32, bf16 to bf16 or f32; scaled in f32.
    const bool types = a->type == b->type && c->type == d->type && desc->scale == CUDA_R_32F &&
                       (a->type == CUDA_R_16BF || d->type == CUDA_R_32F) && desc->pointer_mode == 0;
    const int epilogue = desc->epilogue;
    const bool has_bias = epilogue & (4 | 16 | 256 | 512), has_aux = epilogue & 128;
    const bool bias_fits = !has_bias || desc->bias_type == -1 || desc->bias_type == (int)d->type;
    const bool aux_fits =
        !has_aux || ((desc->aux_type == -1 || desc->aux_type == (int)d->type) && desc->aux_ld % 8 == 0 &&
                     desc->aux_ld >= d->rows && d->batch == 1 && d->order == CUBLASLT_ORDER_COL);
    return types && bias_fits && aux_fits ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc,
                                              cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                              cublasLtMatmulPreference_t preference, int wanted,
                                              cublasLtMatmulHeuristicResult_t *results, int *found) {
    *found = 0;
    if (!handle || !preference || wanted <= 0) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const cublasStatus_t status = check(desc, a, b, c, d);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    for (uint64_t i = 0; i < ALGORITHMS && *found < wanted; i++) {
        const uint64_t workspace = i << 16;
        if (workspace <= preference->workspace) {
            cublasLtMatmulHeuristicResult_t &r = results[(*found)++];
            r = {};
            uint64_t alignment = 16;
            for (const uint32_t bytes : preference->alignment) {
                alignment = std::min<uint64_t>(alignment, bytes);
            }
            r.algo = {{MARK, i, workspace, alignment, 0, 0, 0, 0}};
            r.workspaceSize = workspace;
            r.state = CUBLAS_STATUS_SUCCESS;
            r.wavesCount = 1;
        }
    }
    return CUBLAS_STATUS_SUCCESS;
}

cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a,
                                       cublasLtMatrixLayout_t b, cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d,
                                       const cublasLtMatmulAlgo_t *algo, cublasLtMatmulHeuristicResult_t *result) {
    cublasStatus_t status = algo && algo->data[0] == MARK && algo->data[1] < ALGORITHMS ? check(desc, a, b, c, d)
                                                                                        : CUBLAS_STATUS_INVALID_VALUE;
    *result = {};
    result->state = status;
    if (status == CUBLAS_STATUS_SUCCESS) {
        result->algo = *algo;
        result->workspaceSize = algo->data[2];
        result->wavesCount = 1;
    }
    return status;
}

cublasStatus_t cublasLtMatmulAlgoConfigGetAttribute(const cublasLtMatmulAlgo_t *algo,
                                                    cublasLtMatmulAlgoConfigAttributes_t attribute, void *value,
                                                    size_t bytes, size_t *written) {
    const uint32_t answer = attribute == CUBLASLT_ALGO_CONFIG_ID           ? (uint32_t)algo->data[1]
                            : attribute == CUBLASLT_ALGO_CONFIG_SPLITK_NUM ? 1
                                                                           : 0;
    if (bytes < sizeof answer) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    std::memcpy(value, &answer, sizeof answer);
    if (written) {
        *written = sizeof answer;
    }
    return CUBLAS_STATUS_SUCCESS;
}

// ---- products

namespace {

struct product {
    cublasLtMatmulDescOpaque_t desc;
    cublasLtMatrixLayoutOpaque_t a_layout, b_layout, c_layout, d_layout;
    const void *a, *b, *c;
    void *d;
    float alpha, beta;
    void *workspace;
    size_t workspace_bytes;
};

// tanh form, as cuBLASLt's.
constexpr float GELU_ROOT = 0.7978845608f, GELU_CUBE = 0.044715f;

float gelu(float x) {
    return 0.5f * x * (1.0f + std::tanh(GELU_ROOT * (x + GELU_CUBE * x * x * x)));
}

float gelu_slope(float x) {
    const float t = std::tanh(GELU_ROOT * (x + GELU_CUBE * x * x * x));
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * GELU_ROOT * (1.0f + 3.0f * GELU_CUBE * x * x);
}

void store(void *to, cudaDataType_t type, int64_t place, float x) {
    if (type == CUDA_R_16BF) {
        ((uint16_t *)to)[place] = ts_f32_to_bf16(x);
    } else {
        ((float *)to)[place] = x;
    }
}

float load(const void *from, cudaDataType_t type, int64_t place) {
    return type == CUDA_R_16BF ? ts_bf16_to_f32(((const uint16_t *)from)[place]) : ((const float *)from)[place];
}

matrix view(const cublasLtMatrixLayoutOpaque_t &l, const void *data, bool transposed, int64_t item) {
    const bool by_column = l.order == CUBLASLT_ORDER_COL;
    const int64_t row = by_column ? 1 : l.ld, column = by_column ? l.ld : 1;
    return {(const char *)data + (size_t)(item * l.batch_offset) * l.element(), l.type == CUDA_R_16BF,
            transposed ? column : row, transposed ? row : column};
}

// The number of D before it is rounded, from that of A B + C.
float finish_element(const product &p, int64_t i, int64_t j, float x) {
    const int epilogue = p.desc.epilogue;
    const cudaDataType_t type = p.d_layout.type;
    if (epilogue & CUBLASLT_EPILOGUE_BIAS) {
        x += load(p.desc.bias, type, i);
    }
    if (epilogue & CUBLASLT_EPILOGUE_GELU) {
        if (epilogue & 128) {
            store(p.desc.aux, type, j * p.desc.aux_ld + i, x);
        }
        return gelu(x);
    }
    return epilogue & 64 ? x * gelu_slope(load(p.desc.aux, type, j * p.desc.aux_ld + i)) : x;
}

// bias[i] = sum over k of A (BGRADA), bias[j] = sum over k of B (BGRADB).
void sum_operand(const product &p, const matrix &x, bool rows, int64_t count, int64_t k) {
    for (int64_t i = 0; i < count; i++) {
        float sum = 0;
        for (int64_t q = 0; q < k; q++) {
            sum += rows ? x.at(i, q) : x.at(q, i);
        }
        store(p.desc.bias, p.d_layout.type, i, sum);
    }
}

void compute(const product &p) {
    const int64_t m = p.d_layout.rows, n = p.d_layout.columns;
    const bool ta = p.desc.op_a != CUBLAS_OP_N, tb = p.desc.op_b != CUBLAS_OP_N;
    const int64_t k = ta ? p.a_layout.rows : p.a_layout.columns;
    if (p.workspace_bytes) {
        std::memset(p.workspace, 0xff, p.workspace_bytes);
    }
    std::vector<float> sums((size_t)(m * n)), bias_gradient(p.desc.epilogue & 16 ? (size_t)m : 0);
    for (int64_t item = 0; item < p.d_layout.batch; item++) {
        const matrix a = view(p.a_layout, p.a, ta, item), b = view(p.b_layout, p.b, tb, item);
        const matrix c = view(p.c_layout, p.c, false, item), d = view(p.d_layout, p.d, false, item);
        multiply(a, b, m, n, k, sums.data());
#pragma omp parallel for schedule(static) if (m * n > 10000)
        for (int64_t j = 0; j < n; j++) {
            for (int64_t i = 0; i < m; i++) {
                const float before = p.beta != 0 ? p.beta * c.at(i, j) : 0;
                const float x = finish_element(p, i, j, p.alpha * sums[(size_t)(j * m + i)] + before);
                sums[(size_t)(j * m + i)] = x;
                store((void *)(uintptr_t)d.data, p.d_layout.type, i * d.row + j * d.column, x);
            }
        }
        if (p.desc.epilogue & CUBLASLT_EPILOGUE_BGRADA) {
            sum_operand(p, a, true, m, k);
        }
        if (p.desc.epilogue & CUBLASLT_EPILOGUE_BGRADB) {
            sum_operand(p, b, false, n, k);
        }
    }
    if (!bias_gradient.empty()) {
        for (int64_t i = 0; i < m; i++) {
            for (int64_t j = 0; j < n; j++) {
                bias_gradient[(size_t)i] += sums[(size_t)(j * m + i)];
            }
            store(p.desc.bias, p.d_layout.type, i, bias_gradient[(size_t)i]);
        }
    }
}

// Device memory of the whole matrix, aligned as the algorithm needs it.
bool usable(const cublasLtMatrixLayoutOpaque_t &l, const void *data, uint64_t alignment) {
    place where;
    const size_t bytes = (size_t)((l.batch - 1) * l.batch_offset + l.elements()) * l.element();
    if (!look_up(data, bytes, &where) || where == place::pageable) {
        ts_shim_die("cublasLtMatmul: a matrix of %lld by %lld at %p is not within the device's memory",
                    (long long)l.rows, (long long)l.columns, data);
    }
    return (uintptr_t)data % alignment == 0;
}

}  // namespace

cublasStatus_t cublasLtMatmul(cublasLtHandle_t handle, cublasLtMatmulDesc_t desc, const void *alpha, const void *a,
                              cublasLtMatrixLayout_t a_layout, const void *b, cublasLtMatrixLayout_t b_layout,
                              const void *beta, const void *c, cublasLtMatrixLayout_t c_layout, void *d,
                              cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t *algo, void *workspace,
                              size_t workspace_bytes, cudaStream_t stream) {
    const std::lock_guard<std::recursive_mutex> hold(lock);
    if (!handle || !alpha || !beta || !a || !b || !d) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    cublasLtMatmulHeuristicResult_t chosen = {};
    const cublasLtMatmulAlgo_t first = {{MARK, 0, 0, 1, 0, 0, 0, 0}};
    const cublasStatus_t status =
        cublasLtMatmulAlgoCheck(handle, desc, a_layout, b_layout, c_layout, d_layout, algo ? algo : &first, &chosen);
    if (status != CUBLAS_STATUS_SUCCESS) {
        return status;
    }
    product p = {*desc, *a_layout, *b_layout, *c_layout, *d_layout,           a, b, c ? c : d,
                 d,     0,         0,         workspace, chosen.workspaceSize};
    std::memcpy(&p.alpha, alpha, sizeof p.alpha);
    std::memcpy(&p.beta, beta, sizeof p.beta);
    if (workspace_bytes < chosen.workspaceSize || (chosen.workspaceSize && (uintptr_t)workspace % 16)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    const uint64_t alignment = chosen.algo.data[3];
    if (!usable(p.a_layout, a, alignment) || !usable(p.b_layout, b, alignment) || !usable(p.d_layout, d, alignment) ||
        (p.beta != 0 && !usable(p.c_layout, p.c, alignment))) {
        return CUBLAS_STATUS_NOT_SUPPORTED;
    }
    const int needs_bias = desc->epilogue & (4 | 16 | 256 | 512), needs_aux = desc->epilogue & 128;
    if ((needs_bias && !desc->bias) || (needs_aux && !desc->aux)) {
        return CUBLAS_STATUS_INVALID_VALUE;
    }
    put(stream, "cublasLtMatmul", [p] { compute(p); });
    return CUBLAS_STATUS_SUCCESS;
}
