// SPDX-License-Identifier: Apache-2.0
// TEST: ranks=1,2,3,4 timeout=60
// Asynchronous collectives beside blocking ones: several under way at once, waited for in an order that differs between
// ranks; sums that round, against the same sums made here in the order of the ranks, bit by bit; memory that is
// recycled.
#include "core/base/rng.h"
#include "core/comm/request.h"
#include "tests/comm_setups.h"

enum { MAX_RANKS = 4, MOST = 250000, IN_FLIGHT = 4 };

static ts_comm *world;
static int rank, size;

// Part sizes: nearly even, uneven, with empty parts, all on one rank, all empty; `scale` makes them large.
static int64_t part(int pattern, int r, int64_t scale) {
    const int64_t sizes[] = {scale + r % 2, 1 + r * scale / 2, r % 2 ? 0 : scale, r == size - 1 ? 2 * scale : 0, 0};
    return sizes[pattern];
}
enum { PATTERNS = 5 };

typedef struct batch {
    int64_t counts[MAX_RANKS], first, total;
    float f32[MAX_RANKS][MOST];      // what each rank gives
    uint16_t bf16[MAX_RANKS][MOST];  // the same, rounded
} batch;

static void make_batch(batch *b, int pattern, int64_t scale, uint64_t seed) {
    b->first = b->total = 0;
    for (int r = 0; r < size; r++) {
        b->counts[r] = part(pattern, r, scale);
        b->first += r < rank ? b->counts[r] : 0;
        b->total += b->counts[r];
    }
    CHECK(b->total <= MOST);
    for (int r = 0; r < size; r++) {
        ts_rng_normal_fill(b->f32[r], b->total, seed, TS_RNG_TEST, (uint64_t)r, 0);
        for (int64_t i = 0; i < b->total; i++) {
            b->bf16[r][i] = ts_f32_to_bf16(b->f32[r][i]);
        }
    }
}

static void check_sums(const batch *b, const float *f32, const uint16_t *bf16) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < b->counts[rank]; i++) {
        float sum = b->f32[0][b->first + i], sum_bf16 = ts_bf16_to_f32(b->bf16[0][b->first + i]);
        for (int r = 1; r < size; r++) {
            sum += b->f32[r][b->first + i];
            sum_bf16 += ts_bf16_to_f32(b->bf16[r][b->first + i]);
        }
        wrong += memcmp(&sum, &f32[i], sizeof sum) != 0 || ts_f32_to_bf16(sum_bf16) != bf16[i];
    }
    CHECK(wrong == 0);
}

static batch b;
static float f32[MOST];
static uint16_t bf16[MOST], all[MOST], passed[MOST];

static void test_in_flight(int pattern, int64_t scale, uint64_t seed) {
    make_batch(&b, pattern, scale, seed);
    const int previous = (rank + size - 1) % size;
    ts_request *request[IN_FLIGHT];
    memset(all, 0xee, sizeof all);
    memset(passed, 0xee, sizeof passed);
    const ts_comm_counters reduced = ts_comm_get_counters(world, TS_ALL_REDUCE);
    const uint64_t before = ts_comm_total(world).bytes_sent - reduced.bytes_sent;
    CHECK_OK(ts_reduce_scatter_v_start(world, b.f32[rank], f32, b.counts, TS_F32, &request[0]));
    CHECK_OK(ts_all_gather_v_start(world, b.bf16[rank] + b.first, all, b.counts, TS_BF16, &request[1]));
    CHECK_OK(ts_ring_start(world, b.bf16[rank], b.counts[rank], passed, b.counts[previous], TS_BF16, &request[2]));
    CHECK_OK(ts_reduce_scatter_v_start(world, b.bf16[rank], bf16, b.counts, TS_BF16, &request[3]));
    int64_t ranks = 1;
    CHECK_OK(ts_all_reduce(world, &ranks, 1, TS_I64, TS_SUM));
    CHECK(ranks == size);
    for (int i = 0; i < IN_FLIGHT; i++) {
        const int which = (rank + i * (rank % 2 ? 1 : 3)) % IN_FLIGHT;
        CHECK_OK(ts_wait(&request[which]));
        CHECK(request[which] == NULL);
    }
    const int64_t others = b.total - b.counts[rank];
    const int64_t sent = others * 6 + (b.counts[rank] * (size - 1) + (size > 1 ? b.counts[rank] : 0)) * 2;
    const uint64_t after = ts_comm_total(world).bytes_sent - ts_comm_get_counters(world, TS_ALL_REDUCE).bytes_sent;
    CHECK(after - before == (uint64_t)sent);
    check_sums(&b, f32, bf16);
    for (int64_t r = 0, at = 0; r < size; at += b.counts[r], r++) {
        CHECK(memcmp(all + at, b.bf16[r] + at, (size_t)b.counts[r] * 2) == 0);
    }
    CHECK(memcmp(passed, b.bf16[previous], (size_t)b.counts[previous] * 2) == 0);
    CHECK(all[b.total] == 0xeeee && passed[b.counts[previous]] == 0xeeee);
}

// The blocking forms give the same bits; receiving into the own part of what is sent is allowed.
static void test_blocking(int pattern, int64_t scale, uint64_t seed) {
    make_batch(&b, pattern, scale, seed);
    CHECK_OK(ts_reduce_scatter_v(world, b.f32[rank], f32, b.counts, TS_F32));
    CHECK_OK(ts_reduce_scatter_v(world, b.bf16[rank], bf16, b.counts, TS_BF16));
    check_sums(&b, f32, bf16);
    float *const own = f32 + b.first;
    memcpy(f32, b.f32[rank], (size_t)b.total * sizeof *f32);
    memcpy(all, b.bf16[rank], (size_t)b.total * sizeof *all);
    CHECK_OK(ts_reduce_scatter_v(world, f32, own, b.counts, TS_F32));
    CHECK_OK(ts_reduce_scatter_v(world, all, all + b.first, b.counts, TS_BF16));
    check_sums(&b, own, all + b.first);
    memcpy(f32, b.f32[rank], (size_t)b.total * sizeof *f32);
    CHECK_OK(ts_all_reduce(world, f32, b.total, TS_F32, TS_SUM));
    memcpy(bf16, all + b.first, (size_t)b.counts[rank] * sizeof *bf16);
    check_sums(&b, f32 + b.first, bf16);
    memset(all, 0xee, sizeof all);
    CHECK_OK(ts_all_gather_v(world, b.bf16[rank] + b.first, all, b.counts, TS_BF16));
    for (int64_t r = 0, at = 0; r < size; at += b.counts[r], r++) {
        CHECK(memcmp(all + at, b.bf16[r] + at, (size_t)b.counts[r] * 2) == 0);
    }
    CHECK(all[b.total] == 0xeeee);
}

// What is foretold for one request is what the first one holds, but for its messages.
static void test_memory(void) {
    ts_request *request;
    make_batch(&b, 1, 30000, 12);
    CHECK(ts_request_memory(world) == 0);
    CHECK_OK(ts_reduce_scatter_v_start(world, b.f32[rank], f32, b.counts, TS_F32, &request));
    CHECK_OK(ts_wait(&request));
    const int64_t foretold = ts_reduce_scatter_scratch(world, b.counts, TS_F32);
    const int64_t more = (int64_t)ts_request_memory(world) - foretold, rounds = 1 + foretold / 65536;
    CHECK((size == 1) == (foretold == 0) && more >= 0 && more <= 64 + rounds * 2 * size * (int64_t)sizeof(MPI_Request));
}

static void test_sizes(int64_t large) {
    const int64_t scale[] = {7, large};
    for (int pattern = 0; pattern < PATTERNS; pattern++) {
        for (int s = 0; s < 2; s++) {
            test_in_flight(pattern, scale[s], 10);
            test_blocking(pattern, scale[s], 11);
        }
    }
}

int main(int argc, char **argv) {
    ts_comm *everybody;
    ts_mesh mesh;
    CHECK_OK(ts_world_open(&everybody, &argc, &argv));
    rank = ts_comm_rank(everybody);
    size = ts_comm_size(everybody);
    for (int i = 0; i < COMM_SETUP_COUNT; i++) {
        const bool small = COMM_SETUPS[i].mpi_chunk || COMM_SETUPS[i].shared_chunk;
        world = comm_setup_open(&mesh, everybody, &COMM_SETUPS[i]);
        if (!small) {
            test_memory();
        }
        test_sizes(small ? 2000 : 30000);
        const size_t held = ts_request_memory(world);
        test_sizes(small ? 2000 : 30000);
        CHECK(ts_request_memory(world) == held);
        CHECK(ts_comm_get_counters(world, TS_RING).calls == (size > 1 ? 2 * 2 * PATTERNS : 0));
        ts_mesh_close(&mesh);
    }
    ts_request *none = NULL;
    CHECK_OK(ts_wait(&none));
    ts_world_close(&everybody, ts_test_failures ? TS_EINTERNAL : TS_OK);
    return ts_test_end();
}
