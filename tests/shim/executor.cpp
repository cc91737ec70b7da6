// SPDX-License-Identifier: Apache-2.0
// Runs a kernel: block after block, and in a block the threads one after another, each on a stack of its own until it
// has to wait. A thread that ends hands its stack to the next one that begins, so a kernel without barriers is a loop
// of calls.
#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "tests/shim/fiber.h"
#include "tests/shim/private.h"

__thread uint3 threadIdx, blockIdx, blockDim, gridDim;

namespace shim {

__thread const char *running;
__thread bool inside_kernel;

// ---- the threads of a block

enum class state : unsigned char { fresh, ready, waiting, asking, ended };

struct thread {
    uint3 index;
    state now;
    int next, before;  // the ring of those that have not ended
    fiber *stack;
    const char *what;  // what it waits for
    int line;
    bool (*is_ready)(void *);  // state::asking
    void *argument;
    int barrier;  // that it waits at, or -1
};

// Threads of one warp, warpgroup or block that meet at an instruction.
struct meeting {
    int first, count;
    unsigned mask;
    const char *what;
    int line;
    void (*act)(void *const *, int);
    int arrived;
    std::vector<void *> operand;
};

struct barrier {
    int expected, arrived, line;
};

// Dynamic shared memory ends where pages begin that nothing may touch, but for what its alignment leaves.
class shared_memory {
  public:
    ~shared_memory() { drop(); }
    void resize(size_t bytes);
    void begin_block() { std::fill(data, guard_, (unsigned char)0xff); }
    void end_block() const;

    unsigned char *data = nullptr;
    size_t bytes = 0;

  private:
    void drop();
    static constexpr size_t PAGE = 4096, ALIGNMENT = 1024;
    unsigned char *pages_ = nullptr, *guard_ = nullptr;
    size_t room_ = 0;
};

void shared_memory::drop() {
    if (pages_) {
        munmap(pages_, room_ + PAGE);
    }
}

void shared_memory::resize(size_t wanted) {
    if (room_ < wanted) {
        drop();
        room_ = (wanted + PAGE - 1) / PAGE * PAGE;
        pages_ =
            (unsigned char *)mmap(nullptr, room_ + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        guard_ = pages_ + room_;
        if (pages_ == MAP_FAILED || mprotect(guard_, PAGE, PROT_NONE)) {
            ts_shim_die("out of memory for shared memory of %zu bytes", wanted);
        }
    }
    bytes = wanted;
    data = guard_ ? guard_ - (wanted + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT : nullptr;
}

void shared_memory::end_block() const {
    for (size_t i = bytes; i < (size_t)(guard_ - data); i++) {
        if (data[i] != 0xff) {
            ts_shim_die("byte %zu of %zu of the launch's shared memory was written: out of bounds", i, bytes);
        }
    }
}

struct executor {
    std::vector<thread> threads;
    int current = 0, alive = 0, head = 0;
    uint3 block_dim{0, 0, 0};
    const std::function<void()> *body = nullptr;
    fiber_pool pool;
    fiber home{};
    std::vector<meeting> meetings;  // few at a time
    size_t meeting_count = 0;
    unsigned gone[32] = {};  // for each warp, the lanes that have ended, or never were
    size_t latest[32] = {};  // for each warp, where its latest meeting may still be
    barrier barriers[16];
    shared_memory shared;
    uint64_t blocks_run = 0, turn = 0;
    bool backwards = false, warps_first = false;
};

static thread_local executor own;
static __thread executor *here;

static const char *waits_for(const thread &t) {
    return t.what ? t.what : "nothing";
}

[[noreturn]] static void tell_stuck() {
    static char list[1024];
    size_t used = 0;
    int told_of = 0;
    for (size_t i = 0; i < here->threads.size() && told_of < 4; i++) {
        const thread &t = here->threads[i];
        const bool differs = i == 0 || t.what != here->threads[i - 1].what || t.line != here->threads[i - 1].line ||
                             t.now != here->threads[i - 1].now;
        if (differs && used < sizeof list) {
            used += (size_t)snprintf(list + used, sizeof list - used, "%s thread %zu %s %s", told_of++ ? ";" : "", i,
                                     t.now == state::ended ? "has ended" : "waits at",
                                     t.now == state::ended ? "" : waits_for(t));
            if (t.now != state::ended && t.line && used < sizeof list) {
                used += (size_t)snprintf(list + used, sizeof list - used, " (line %d)", t.line);
            }
        }
    }
    ts_shim_die("no thread of the block can go on: a barrier or warp exchange that not all reach:%s", list);
}

static void enter(int t) {
    here->current = t;
    threadIdx = here->threads[(size_t)t].index;
}

static bool can_go(thread &t) {
    if (t.now == state::asking && t.is_ready(t.argument)) {
        t.now = state::ready;
    }
    return t.now == state::fresh || t.now == state::ready;
}

// The next thread that can go on, after `me` in its warp where warps go first, else after `from` in the block's order;
// -1 when none can.
static int find_next(int me, int from) {
    std::vector<thread> &threads = here->threads;
    for (int i = 1; here->warps_first && i <= 32; i++) {
        const int t = me / 32 * 32 + (me + (here->backwards ? 32 - i : i)) % 32;
        if (t < (int)threads.size() && can_go(threads[(size_t)t])) {
            return t;
        }
    }
    int t = from;
    do {
        t = threads[(size_t)t].next;
        if (can_go(threads[(size_t)t])) {
            return t;
        }
    } while (t != from);
    return -1;
}

static void run_threads(fiber *self);

static void go_to(int t, fiber *from) {
    thread &next = here->threads[(size_t)t];
    if (next.now == state::fresh) {
        next.stack = here->pool.take(run_threads);
    }
    enter(t);
    fiber_switch(from, next.stack);
}

// The current thread waits: others run until something makes it ready.
static void wait(state how, const char *what, int line) {
    const int me = here->current;
    thread &mine = here->threads[(size_t)me];
    mine.now = how;
    mine.what = what;
    mine.line = line;
    const int next = find_next(me, me);
    if (next < 0) {
        tell_stuck();
    }
    if (next != me) {
        go_to(next, mine.stack);
    }
    here->threads[(size_t)me].what = nullptr;
    here->threads[(size_t)me].line = 0;
}

static void finish_meeting(size_t which);

// How many threads a meeting waits for.
static int expected_lanes(int first, int count, unsigned mask) {
    return count == 32 ? __builtin_popcount(mask & ~here->gone[first / 32]) : count;
}

// A thread that ends leaves the ring, and the meetings of its warp, which need not wait for it.
static int leave() {
    const int me = here->current;
    thread &mine = here->threads[(size_t)me];
    mine.now = state::ended;
    const int next = mine.next;
    here->threads[(size_t)mine.before].next = next;
    here->threads[(size_t)next].before = mine.before;
    here->alive--;
    here->gone[me / 32] |= 1u << me % 32;
    for (size_t i = 0; i < here->meeting_count; i++) {
        meeting &m = here->meetings[i];
        const bool awaited = m.count == 32 && me / 32 == m.first / 32 && (m.mask >> me % 32 & 1);
        if (awaited && m.arrived == expected_lanes(m.first, 32, m.mask)) {
            finish_meeting(i--);
        }
    }
    return here->alive ? find_next(me, mine.before) : -1;
}

// Where every stack begins: it runs one fresh thread after another.
static void run_threads(fiber *self) {
    for (;;) {
        thread &mine = here->threads[(size_t)here->current];
        mine.now = state::ready;
        mine.stack = self;
        (*here->body)();
        const int next = leave();
        if (next >= 0 && here->threads[(size_t)next].now == state::fresh) {
            enter(next);
            continue;
        }
        if (next < 0 && here->alive) {
            tell_stuck();
        }
        here->pool.give(self);
        if (next < 0) {
            fiber_switch(self, &here->home);
        } else {
            go_to(next, self);
        }
    }
}

// ---- blocks

static void shape_threads(uint3 dim) {
    if (dim.x == here->block_dim.x && dim.y == here->block_dim.y && dim.z == here->block_dim.z) {
        return;
    }
    here->block_dim = dim;
    here->threads.assign((size_t)dim.x * dim.y * dim.z, thread{});
    for (size_t i = 0; i < here->threads.size(); i++) {
        here->threads[i].index = {(unsigned)(i % dim.x), (unsigned)(i / dim.x % dim.y), (unsigned)(i / dim.x / dim.y)};
    }
}

// The order of threads: forwards, backwards, or by chance; and then, whether a warp goes on as long as one of its
// threads can, so that it is as far ahead of the others as barriers allow, or all go in step.
static void choose_order(uint64_t turn) {
    const order o = chosen_order();
    const bool alternates = o == order::alternate;
    here->backwards = o == order::reverse || (alternates && turn % 2);
    here->warps_first =
        o == order::warps || (alternates && (turn % 4 == 1 || turn % 4 == 2)) || (o == order::random && turn % 2);
}

static void order_threads(uint64_t turn) {
    std::vector<thread> &threads = here->threads;
    const int n = (int)threads.size();
    choose_order(turn);
    static thread_local std::vector<int> sequence;
    sequence.resize((size_t)n);
    for (int i = 0; i < n; i++) {
        sequence[(size_t)i] = here->backwards ? n - 1 - i : i;
    }
    if (chosen_order() == order::random) {
        dice d(turn);
        for (int i = n - 1; i > 0; i--) {
            std::swap(sequence[(size_t)i], sequence[d.below((unsigned)i + 1)]);
        }
    }
    for (int i = 0; i < n; i++) {
        thread &t = threads[(size_t)sequence[(size_t)i]];
        t.now = state::fresh;
        t.what = nullptr;
        t.line = 0;
        t.barrier = -1;
        t.next = sequence[(size_t)((i + 1) % n)];
        t.before = sequence[(size_t)((i + n - 1) % n)];
    }
    for (int warp = 0; warp < 32; warp++) {
        const int lanes = std::clamp(n - warp * 32, 0, 32);
        here->gone[warp] = lanes < 32 ? ~0u << lanes : 0;
    }
    here->head = sequence[0];
    here->alive = n;
}

static void run_block(const launch &kernel, uint64_t number) {
    blockIdx = {(unsigned)(number % kernel.grid.x), (unsigned)(number / kernel.grid.x % kernel.grid.y),
                (unsigned)(number / kernel.grid.x / kernel.grid.y)};
    order_threads(number + here->turn);
    here->blocks_run++;
    here->meeting_count = 0;
    std::memset(here->barriers, 0, sizeof here->barriers);
    here->shared.begin_block();
    enter(here->head);
    fiber *const first = here->pool.take(run_threads);
    fiber_switch(&here->home, first);
    here->shared.end_block();
    for (const barrier &b : here->barriers) {
        if (b.arrived) {
            ts_shim_die("the block ended while threads were counted at barrier %d (line %d)",
                        (int)(&b - here->barriers), b.line);
        }
    }
}

static void prepare(const launch &kernel, uint64_t turn) {
    here = &own;
    here->turn = turn;
    here->body = &kernel.thread;
    shape_threads({kernel.block.x, kernel.block.y, kernel.block.z});
    here->shared.resize(kernel.shared_bytes);
    blockDim = {kernel.block.x, kernel.block.y, kernel.block.z};
    gridDim = {kernel.grid.x, kernel.grid.y, kernel.grid.z};
    running = kernel.name;
    inside_kernel = true;
}

void run_kernel(const launch &kernel) {
    static uint64_t launches;
    const uint64_t turn = launches++;
    const order chosen = chosen_order();
    const bool backwards = chosen == order::reverse || (chosen == order::alternate && turn % 2);
    const int64_t blocks = (int64_t)kernel.grid.x * kernel.grid.y * kernel.grid.z;
#pragma omp parallel if (blocks >= 8)
    {
        prepare(kernel, turn);
#pragma omp for schedule(dynamic, 2)
        for (int64_t i = 0; i < blocks; i++) {
            run_block(kernel, (uint64_t)(backwards ? blocks - 1 - i : i));
        }
        inside_kernel = false;
        running = nullptr;
    }
}

// ---- meetings

static void finish_meeting(size_t which) {
    meeting &m = here->meetings[which];
    if (m.act) {
        m.act(m.operand.data(), m.count);
    }
    for (int i = 0; i < m.count; i++) {
        if (m.operand[(size_t)i]) {
            thread &t = here->threads[(size_t)(m.first + i)];
            t.now = state::ready;
        }
    }
    std::swap(here->meetings[which], here->meetings[--here->meeting_count]);
}

static meeting &begin_meeting(int first, int count, unsigned mask) {
    if (here->meeting_count == here->meetings.size()) {
        here->meetings.emplace_back();
    }
    meeting &m = here->meetings[here->meeting_count++];
    m.first = first;
    m.count = count;
    m.mask = mask;
    m.arrived = 0;
    m.operand.assign((size_t)count, nullptr);
    return m;
}

// Whether a thread of this thread's warp has come to a meeting. Warps of a larger group that waits may still be
// elsewhere.
static bool is_of_warp(const meeting &m, int thread) {
    for (int t = thread / 32 * 32; t < thread / 32 * 32 + 32 && t < m.first + m.count; t++) {
        if (m.operand[(size_t)(t - m.first)]) {
            return true;
        }
    }
    return false;
}

// A call of an instruction that lanes meet at.
struct meeting_call {
    int first, count;
    unsigned mask;
    const char *what;
    int line;
    void (*act)(void *const *, int);

    bool is(const meeting &m) const {
        return m.first == first && m.line == line && m.act == act && m.mask == mask && m.count == count &&
               (m.what == what || std::strcmp(m.what, what) == 0);
    }
};

// The meeting that this thread comes to: one that waits for it, or a new one.
static size_t find_meeting(const meeting_call &call) {
    const int me = here->current;
    size_t &latest = here->latest[me / 32];
    if (latest < here->meeting_count && call.is(here->meetings[latest])) {
        return latest;
    }
    for (size_t i = 0; i < here->meeting_count; i++) {
        const meeting &m = here->meetings[i];
        const bool mine = me >= m.first && me < m.first + m.count && (m.count != 32 || (m.mask >> (me - m.first) & 1));
        if (!mine || (m.count > call.count && !is_of_warp(m, me))) {
            continue;
        }
        if (!call.is(m)) {
            ts_shim_die("divergence: this thread came to %s (line %d, mask %#x) while others of its warp wait for it "
                        "at %s (line %d, mask %#x)",
                        call.what, call.line, call.mask, m.what, m.line, m.mask);
        }
        return latest = i;
    }
    meeting &m = begin_meeting(call.first, call.count, call.mask);
    m.what = call.what;
    m.line = call.line;
    m.act = call.act;
    return latest = here->meeting_count - 1;
}

}  // namespace shim

using namespace shim;

void ts_shim_meet(ts_shim_scope scope, unsigned mask, const char *what, int line, void *operand,
                  void (*act)(void *const *operand, int count)) {
    const int me = here->current, n = (int)here->threads.size();
    const int count = scope == TS_SHIM_BLOCK ? n : (int)scope;
    const int first = me / count * count;
    if (scope == TS_SHIM_WARP && !(mask >> (me - first) & 1)) {
        ts_shim_die("%s (line %d): lane %d calls it with mask %#x, which leaves it out", what, line, me - first, mask);
    }
    if (scope == TS_SHIM_WARPGROUP && first + count > n) {
        ts_shim_die("%s (line %d): the block's last %d threads are no warpgroup", what, line, n - first);
    }
    const size_t i = find_meeting({first, count, scope == TS_SHIM_WARP ? mask : ~0u, what, line, act});
    meeting &m = here->meetings[i];
    char nothing;
    m.operand[(size_t)(me - first)] = operand ? operand : &nothing;
    if (++m.arrived == expected_lanes(first, count, mask)) {
        finish_meeting(i);
    } else {
        wait(state::waiting, what, line);
    }
}

// ---- barriers

static const char *const barrier_name[16] = {
    "__syncthreads", "barrier 1", "barrier 2",  "barrier 3",  "barrier 4",  "barrier 5",  "barrier 6",  "barrier 7",
    "barrier 8",     "barrier 9", "barrier 10", "barrier 11", "barrier 12", "barrier 13", "barrier 14", "barrier 15"};

static void come_to(int number, int count, int line, bool stays) {
    if (number < 0 || number >= 16 || count <= 0 || count > (int)here->threads.size()) {
        ts_shim_die("barrier %d of %d threads (line %d): there are 16 barriers, and %zu threads in the block", number,
                    count, line, here->threads.size());
    }
    barrier &b = here->barriers[number];
    if (b.arrived && b.expected != count) {
        ts_shim_die("barrier %d: %d threads expected at line %d, %d at line %d", number, b.expected, b.line, count,
                    line);
    }
    b.expected = count;
    b.line = line;
    if (++b.arrived < count) {
        if (stays) {
            here->threads[(size_t)here->current].barrier = number;
            wait(state::waiting, barrier_name[number], line);
        }
        return;
    }
    b.arrived = 0;
    for (thread &t : here->threads) {
        if (t.barrier == number) {
            t.barrier = -1;
            t.now = state::ready;
        }
    }
}

void ts_shim_barrier_sync(int barrier, int threads, int line) {
    come_to(barrier, threads, line, true);
}

void ts_shim_barrier_arrive(int barrier, int threads, int line) {
    come_to(barrier, threads, line, false);
}

void ts_shim_syncthreads(int line) {
    const barrier &b = here->barriers[0];
    if (b.arrived && b.line != line) {
        ts_shim_die("divergent __syncthreads: this thread came to the one in line %d while others wait in line %d",
                    line, b.line);
    }
    come_to(0, (int)here->threads.size(), line, true);
}

void ts_shim_wait(bool (*ready)(void *), void *argument, const char *what) {
    if (ready(argument)) {
        return;
    }
    thread &mine = here->threads[(size_t)here->current];
    mine.is_ready = ready;
    mine.argument = argument;
    wait(state::asking, what, 0);
}

void __nanosleep(unsigned) {
    bool asked = false;
    ts_shim_wait(
        [](void *before) {
            bool &seen = *(bool *)before;
            const bool again = seen;
            seen = true;
            return again;
        },
        &asked, "__nanosleep");
}

// ---- where a thread is

int ts_shim_thread(void) {
    return here->current;
}

int ts_shim_threads(void) {
    return (int)here->threads.size();
}

int ts_shim_lane() {
    return here->current & 31;
}

uint64_t ts_shim_block_number(void) {
    return here->blocks_run;
}

void *ts_shim_dynamic_shared(void) {
    return here->shared.data;
}

size_t ts_shim_dynamic_shared_bytes(void) {
    return here->shared.bytes;
}
