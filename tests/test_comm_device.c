// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=120 backend=cuda
// Every collective on a device's memory, over every way it can travel: the bits that sums in the order of the ranks
// have, bytes as the formulas say, uneven and empty parts, in place and not; several under way at once; recorded ones.
#include "core/base/rng.h"
#include "core/comm/mesh.h"
#include "core/comm/reduce.h"
#include "core/comm/transport.h"
#include "core/kernels/kernels.h"
#include "tests/ts_test.h"

enum { MAX_RANKS = 4, MOST = 29000, ELEMENT = 8, PAD = 64 };

static const ts_device *device;
static ts_comm *comm;
static int rank, size;

_Alignas(64) static char given[MAX_RANKS][MOST * ELEMENT];  // what each rank gives
_Alignas(64) static char wanted[MOST * ELEMENT];
_Alignas(64) static char got[MOST * ELEMENT + PAD];
static char *a, *b, *c;  // of the device: [MOST * ELEMENT + PAD]

static bool whole;  // whole numbers, whose sums are the same in every order

// ---- numbers

static void put(ts_dtype dtype, char *at, int64_t i, float x) {
    x = whole ? roundf(20 * x) + 0.0F : x;  // not -0, which is as large as 0
    switch (dtype) {
    case TS_F32:
        ((float *)(void *)at)[i] = x;
        break;
    case TS_F64:
        ((double *)(void *)at)[i] = (whole ? 1 : 1.1) * (double)x;
        break;
    case TS_I64:
        ((int64_t *)(void *)at)[i] = (int64_t)(1e12F * x);
        break;
    case TS_I32:
        ((int32_t *)(void *)at)[i] = (int32_t)(1e6F * x);
        break;
    default:
        ((uint16_t *)(void *)at)[i] = ts_f32_to_bf16(x);
    }
}

static void make_given(ts_dtype dtype, int64_t n, uint64_t seed) {
    static float x[MOST];
    CHECK(n <= MOST);
    for (int r = 0; r < size; r++) {
        ts_rng_normal_fill(x, n, seed, TS_RNG_TEST, (uint64_t)r, 0);
        for (int64_t i = 0; i < n && i < MOST; i++) {
            put(dtype, given[r], i, x[i]);
        }
    }
}

// Part sizes: even, nearly even, uneven, with empty parts, all on one rank, all empty.
static int64_t part(int pattern, int r, int64_t scale) {
    const int64_t sizes[] = {scale, scale + r % 2, 1 + r * scale / 2, r % 2 ? 0 : scale, r == size - 1 ? 2 * scale : 0,
                             0};
    return sizes[pattern];
}
enum { PATTERNS = 6 };

typedef struct parts {
    int64_t count[MAX_RANKS], first, total;  // first: of this rank
} parts;

static parts make_parts(int pattern, int64_t scale) {
    parts p = {.total = 0};
    for (int r = 0; r < size; r++) {
        p.count[r] = part(pattern, r, scale);
        p.first += r < rank ? p.count[r] : 0;
        p.total += p.count[r];
    }
    return p;
}

static void sum_given(ts_dtype dtype, int64_t first, int64_t n, ts_reduce_op op) {
    const void *part_of[MAX_RANKS];
    for (int r = 0; r < size; r++) {
        part_of[r] = given[r] + (size_t)first * ts_dtype_bytes(dtype);
    }
    ts_reduce_parts(wanted, part_of, size, n, dtype, op);
}

// ---- memory

static void upload(char *to, const void *from, size_t bytes) {
    CHECK_OK(device->zero(to, bytes + PAD));
    CHECK_OK(device->upload(to, from, bytes));
}

// What came is what was wanted, and nothing beyond.
static bool came(const char *from, size_t bytes) {
    memset(got, 0xee, sizeof got);
    CHECK_OK(device->download(got, from, bytes + PAD));
    bool clean = true;
    for (int i = 0; i < PAD; i++) {
        clean = clean && got[bytes + (size_t)i] == 0;
    }
    return clean && memcmp(got, wanted, bytes) == 0;
}

static ts_comm_counters counted;
static void expect_bytes(void) {
    counted = ts_comm_total(comm);
}
static bool sent(ts_collective kind, const int64_t *counts, ts_dtype dtype) {
    const ts_comm_counters now = ts_comm_total(comm);
    return now.calls - counted.calls == (size > 1) &&
           now.bytes_sent - counted.bytes_sent == (uint64_t)ts_comm_bytes(comm, kind, counts, dtype);
}

// ---- one collective at a time

static void test_all_reduce(ts_dtype dtype, ts_reduce_op op, int64_t n) {
    const size_t bytes = (size_t)n * ts_dtype_bytes(dtype);
    make_given(dtype, n, 1);
    upload(a, given[rank], bytes);
    expect_bytes();
    CHECK_OK(ts_all_reduce(comm, a, n, dtype, op));
    CHECK(sent(TS_ALL_REDUCE, &n, dtype));
    sum_given(dtype, 0, n, op);
    CHECK(came(a, bytes));
}

static int finish(int status, ts_request **request) {
    return status ? status : ts_wait(request);
}

static void test_reduce_scatter(ts_dtype dtype, const parts *p, bool in_place, bool started) {
    const size_t element = ts_dtype_bytes(dtype), bytes = (size_t)p->count[rank] * element;
    ts_request *request;
    make_given(dtype, p->total, 2);
    upload(a, given[rank], (size_t)p->total * element);
    CHECK_OK(device->zero(b, bytes + PAD));
    char *const to = in_place ? a + (size_t)p->first * element : b;
    expect_bytes();
    CHECK_OK(started ? finish(ts_reduce_scatter_v_start(comm, a, to, p->count, dtype, &request), &request)
                     : ts_reduce_scatter_v(comm, a, to, p->count, dtype));
    CHECK(sent(TS_REDUCE_SCATTER, p->count, dtype));
    sum_given(dtype, p->first, p->count[rank], TS_SUM);
    if (in_place) {
        CHECK_OK(device->copy(b, to, bytes));
    }
    CHECK(came(b, bytes));
}

static void test_all_gather(ts_dtype dtype, const parts *p, bool in_place, bool started) {
    const size_t element = ts_dtype_bytes(dtype), bytes = (size_t)p->total * element;
    const size_t own = (size_t)p->first * element, own_bytes = (size_t)p->count[rank] * element;
    ts_request *request;
    make_given(dtype, p->total, 3);
    upload(a, given[rank] + own, own_bytes);
    CHECK_OK(device->zero(b, bytes + PAD));
    if (in_place) {
        CHECK_OK(device->copy(b + own, a, own_bytes));
    }
    const char *const from = in_place ? b + own : a;
    expect_bytes();
    CHECK_OK(started ? finish(ts_all_gather_v_start(comm, from, b, p->count, dtype, &request), &request)
                     : ts_all_gather_v(comm, from, b, p->count, dtype));
    CHECK(sent(TS_ALL_GATHER, p->count, dtype));
    size_t at = 0;
    for (int r = 0; r < size; r++) {
        memcpy(wanted + at, given[r] + at, (size_t)p->count[r] * element);
        at += (size_t)p->count[r] * element;
    }
    CHECK(came(b, bytes));
}

static void test_broadcast(int64_t bytes, int root) {
    make_given(TS_F64, (bytes + 7) / 8, 4);
    upload(a, given[rank], (size_t)bytes);
    expect_bytes();
    CHECK_OK(ts_broadcast(comm, a, bytes, root));
    CHECK(sent(TS_BROADCAST, &bytes, TS_U8));
    memcpy(wanted, given[root], (size_t)bytes);
    CHECK(came(a, (size_t)bytes));
}

// Rank a sends to rank b as many numbers as this, some none.
static int64_t traffic(int pattern, int64_t scale, int from, int to) {
    return pattern == 0 ? scale : pattern == 1 ? (from == to ? scale : 0) : (from * 5 + to * 3 + pattern) % 4 * scale;
}

static void test_all_to_all(int pattern, int64_t scale) {
    parts out = {.total = 0}, in = {.total = 0};
    make_given(TS_I32, 12 * scale, 5);
    for (int r = 0; r < size; r++) {
        out.total += out.count[r] = traffic(pattern, scale, rank, r);
        int64_t at = 0;
        for (int to = 0; to < rank; to++) {
            at += traffic(pattern, scale, r, to);
        }
        in.count[r] = traffic(pattern, scale, r, rank);
        memcpy(wanted + 4 * in.total, given[r] + 4 * at, (size_t)in.count[r] * 4);
        in.total += in.count[r];
    }
    upload(a, given[rank], (size_t)out.total * 4);
    CHECK_OK(device->zero(b, (size_t)in.total * 4 + PAD));
    expect_bytes();
    CHECK_OK(ts_all_to_all_v(comm, a, out.count, b, in.count, TS_I32));
    CHECK(sent(TS_ALL_TO_ALL, out.count, TS_I32));
    CHECK(came(b, (size_t)in.total * 4));
}

static void test_ring(const parts *p) {
    const int before = (rank + size - 1) % size;
    ts_request *request;
    make_given(TS_BF16, p->total, 6);
    upload(a, given[rank], (size_t)p->count[rank] * 2);
    CHECK_OK(device->zero(b, (size_t)p->count[before] * 2 + PAD));
    expect_bytes();
    CHECK_OK(ts_ring_start(comm, a, p->count[rank], b, p->count[before], TS_BF16, &request));
    CHECK_OK(ts_wait(&request));
    CHECK(sent(TS_RING, &p->count[rank], TS_BF16));
    memcpy(wanted, given[before], (size_t)p->count[before] * 2);
    CHECK(came(b, (size_t)p->count[before] * 2));
}

// ---- several at once

// What is started sees what was done before, what is done after a wait sees what came; waits in another order on each
// rank, with a blocking call on host memory and one on the device's in between.
static void test_in_flight(const parts *p, uint64_t seed) {
    const size_t element = sizeof(float), bytes = (size_t)p->count[rank] * element, all = (size_t)p->total * element;
    const int before = (rank + size - 1) % size;
    ts_request *request[3];
    char *const gathered = device->allocate(all + 1), *const passed = device->allocate(all + 1);
    char *const send = device->allocate(all + 1), *const sum = device->allocate(bytes + 1);
    make_given(TS_F32, p->total, seed);
    upload(c, given[rank], all);
    CHECK_OK(device->copy(send, c, all));
    CHECK_OK(ts_reduce_scatter_v_start(comm, send, sum, p->count, TS_F32, &request[0]));
    CHECK_OK(ts_all_gather_v_start(comm, c + (size_t)p->first * element, gathered, p->count, TS_F32, &request[1]));
    CHECK_OK(ts_ring_start(comm, c, p->count[rank], passed, p->count[before], TS_F32, &request[2]));
    int64_t ranks = 1;
    CHECK_OK(ts_all_reduce(comm, &ranks, 1, TS_I64, TS_SUM));
    CHECK(ranks == size);
    test_all_reduce(TS_I32, TS_MAX, 5);
    make_given(TS_F32, p->total, seed);
    for (int i = 0; i < 3; i++) {
        CHECK_OK(ts_wait(&request[(rank + i * (1 + rank % 2)) % 3]));
    }
    CHECK_OK(device->zero(b, bytes + PAD));
    CHECK_OK(device->copy(b, sum, bytes));
    sum_given(TS_F32, p->first, p->count[rank], TS_SUM);
    CHECK(came(b, bytes));
    CHECK_OK(device->zero(b, all + PAD));
    CHECK_OK(device->copy(b, gathered, all));
    for (size_t r = 0, at = 0; r < (size_t)size; at += (size_t)p->count[r] * element, r++) {
        memcpy(wanted + at, given[r] + at, (size_t)p->count[r] * element);
    }
    CHECK(came(b, all));
    CHECK_OK(device->zero(b, all + PAD));
    CHECK_OK(device->copy(b, passed, (size_t)p->count[before] * element));
    memcpy(wanted, given[before], (size_t)p->count[before] * element);
    CHECK(came(b, (size_t)p->count[before] * element));
    device->release(gathered);
    device->release(passed);
    device->release(send);
    device->release(sum);
}

// ---- recordings

static int exchange_twice(float *sum, float *passed) {
    ts_request *request;
    TS_TRY(ts_ring_start(comm, sum, 500, passed, 500, TS_F32, &request));
    TS_TRY(ts_wait(&request));
    TS_TRY(device->copy(sum, passed, 500 * sizeof *sum));
    return ts_all_reduce(comm, sum, 500, TS_F32, TS_SUM);
}

// Each run passes the numbers on and adds them up; of calls that wait for the host there is no recording.
static void test_recording(bool nccl) {
    ts_recording *recording = NULL;
    float *const sum = (float *)(void *)a, *const passed = (float *)(void *)b;
    if (!device->record_begin) {
        return;
    }
    whole = true;
    make_given(TS_F32, 500, 7);
    upload(a, given[rank], 500 * sizeof(float));
    CHECK_OK(device->record_begin());
    if (size > 1 && !nccl) {
        CHECK_FAILS(ts_all_reduce(comm, sum, 500, TS_F32, TS_SUM), TS_EUSAGE, "cannot be recorded");
        (void)device->record_end(&recording);
        device->recording_close(&recording);
        return;
    }
    CHECK_OK(exchange_twice(sum, passed));
    CHECK_OK(device->record_end(&recording));
    memcpy(wanted, given[rank], 500 * sizeof(float));
    CHECK(came(a, 500 * sizeof(float)));  // nothing has been done yet
    for (int run = 0; run < 3; run++) {
        CHECK_OK(device->recording_run(recording));
    }
    sum_given(TS_F32, 0, 500, TS_SUM);
    for (int i = 0; i < 500; i++) {
        for (int run = 1; run < 3; run++) {
            float *const at = (float *)(void *)wanted + i, one = *at;
            for (int r = 1; r < size; r++) {
                *at += one;
            }
        }
    }
    CHECK(came(a, 500 * sizeof(float)));
    device->recording_close(&recording);
}

// ---- the ways

typedef struct way {
    const char *name;
    ts_device_choice choice;
    int64_t bytes;  // of a piece through the host, of the window over NCCL; 0: as it is
    ts_nccl_sums_choice sums;
    bool far, registers;  // as if the ranks were on several hosts
} way;

static const way WAYS[] = {
    {"staged", TS_DEVICE_TRANSPORT_STAGED, 0, TS_NCCL_SUMS_AUTO, false, false},
    {"staged in small pieces", TS_DEVICE_TRANSPORT_STAGED, 1000, TS_NCCL_SUMS_AUTO, false, false},
    {"chosen", TS_DEVICE_TRANSPORT_AUTO, 0, TS_NCCL_SUMS_AUTO, false, false},
    {"chosen, with NCCL's sums", TS_DEVICE_TRANSPORT_AUTO, 0, TS_NCCL_SUMS_NCCL, false, true},
    {"chosen, as between hosts", TS_DEVICE_TRANSPORT_AUTO, 0, TS_NCCL_SUMS_ORDERED, true, false},
    {"chosen, in small rounds", TS_DEVICE_TRANSPORT_AUTO, 10000, TS_NCCL_SUMS_AUTO, false, false},
};
enum { WAY_COUNT = sizeof WAYS / sizeof *WAYS };

static void test_sizes(int64_t scale) {
    const ts_dtype sums[] = {TS_F32, TS_F64, TS_I32, TS_I64, TS_BF16};
    const ts_reduce_op ops[] = {TS_SUM, TS_MAX, TS_MIN};
    for (int i = 0; i < 12; i++) {
        test_all_reduce(sums[i % 4], ops[i / 4], 2 * scale + i);
    }
    for (int pattern = 0; pattern < PATTERNS; pattern++) {
        const parts p = make_parts(pattern, scale);
        for (int i = 0; i < 4; i++) {
            test_reduce_scatter(sums[(pattern + i) % 5], &p, i % 2, i / 2);
            test_all_gather(sums[(pattern + i) % 5], &p, i % 2, i / 2);
        }
        test_reduce_scatter(TS_BF16, &p, false, pattern % 2);
        test_ring(&p);
        test_in_flight(&p, (uint64_t)pattern);
    }
    for (int pattern = 0; pattern < 4; pattern++) {
        test_all_to_all(pattern, scale);
    }
    test_broadcast(scale, 0);
    test_broadcast(8 * scale + 3, size - 1);
}

static void test_way(ts_comm *world, const way *w) {
    static int64_t piece, window;
    ts_mesh mesh;
    const int failures = ts_test_failures;
    piece = piece ? piece : ts_staged_piece;
    window = window ? window : ts_nccl_window;
    ts_staged_piece = w->bytes ? w->bytes : piece;
    ts_nccl_window = w->bytes ? w->bytes : window;
    ts_device_wanted = w->choice;
    ts_nccl_sums = w->sums;
    ts_nccl_registers = w->registers;
    whole = w->sums == TS_NCCL_SUMS_NCCL;
    CHECK_OK(ts_mesh_open(&mesh, world, &(ts_degrees){size, 1, 1, 1, 1}));
    comm = mesh.axis[TS_AXIS_DATA];
    test_all_reduce(TS_F32, TS_SUM, 0);
    comm->one_host = comm->one_host && !w->far;
    test_sizes(7);
    test_sizes(2400);
    const bool nccl = comm->nccl != NULL;
    test_recording(nccl);
    CHECK(ts_comm_records(comm) == (size == 1 || nccl));
    CHECK(!nccl || w->choice != TS_DEVICE_TRANSPORT_STAGED);
    CHECK_OK(device->finish());
    ts_mesh_close(&mesh);
    if (rank == 0) {
        printf("%s: %s\n", w->name, size == 1 ? "a lone rank" : nccl ? "NCCL" : "through the host");
    }
    if (ts_test_failures > failures) {
        fprintf(stderr, "rank %d: the failures above are of the way %s\n", rank, w->name);
    }
}

int main(int argc, char **argv) {
    const ts_kernels *kernels;
    ts_comm *world;
    setenv("TESSERA_SHIM_DEVICES", getenv("TESSERA_TEST_RANKS") ? getenv("TESSERA_TEST_RANKS") : "1", 0);
    CHECK_OK(ts_world_open(&world, &argc, &argv));
    rank = ts_comm_rank(world);
    size = ts_comm_size(world);
    const int status = ts_kernels_open(&kernels, ts_test_backend(), ts_comm_local_rank(world));
    if (status == TS_EPEER) {
        ts_world_close(&world, TS_OK);
        ts_test_skip(ts_error_text());
    }
    CHECK_OK(status);
    device = kernels->device;
    a = device->allocate(MOST * ELEMENT + PAD);
    b = device->allocate(MOST * ELEMENT + PAD);
    c = device->allocate(MOST * ELEMENT + PAD);
    for (int i = 0; i < (device->is_host ? 1 : WAY_COUNT); i++) {
        test_way(world, &WAYS[i]);
    }
    device->release(a);
    device->release(b);
    device->release(c);
    ts_world_close(&world, ts_test_failures ? TS_EINTERNAL : TS_OK);
    return ts_test_end();
}
