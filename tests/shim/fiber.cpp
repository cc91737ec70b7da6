// SPDX-License-Identifier: Apache-2.0
#include "tests/shim/fiber.h"

#include <sys/mman.h>

#include <cstdint>

#include "tests/shim/private.h"

#if defined(__SANITIZE_ADDRESS__)
#define TS_SHIM_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define TS_SHIM_ASAN 1
#endif
#endif
#ifdef TS_SHIM_ASAN
#include <sanitizer/common_interface_defs.h>
#endif

namespace shim {

namespace {
#ifdef TS_SHIM_ASAN
constexpr size_t STACK = 256 << 10;
#else
constexpr size_t STACK = 64 << 10;
#endif
constexpr size_t GUARD = 4096;

__thread fiber *current, *previous;
__thread void (*first_function)(fiber *);
}  // namespace

// Told to AddressSanitizer on arrival on a stack: which one was left.
static void arrive(fiber *on) {
#ifdef TS_SHIM_ASAN
    const void *bottom;
    size_t size;
    __sanitizer_finish_switch_fiber(on->fake_stack, &bottom, &size);
    previous->stack = (char *)bottom;
    previous->bytes = size;
#else
    (void)on;
#endif
}

static void begin() {
    fiber *const self = current;
    arrive(self);
    first_function(self);
    __builtin_unreachable();
}

#if defined(__x86_64__)
// Saves what a function must keep for its caller, changes stacks, and restores it.
extern "C" void ts_shim_switch_stacks(void **save, void *load);
asm(".text\n"
    ".type ts_shim_switch_stacks, @function\n"
    "ts_shim_switch_stacks:\n"
    "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
    "  movq %rsp, (%rdi)\n"
    "  movq %rsi, %rsp\n"
    "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n"
    "  ret\n"
    ".size ts_shim_switch_stacks, . - ts_shim_switch_stacks\n");

static void set_up(fiber *f, size_t room) {
    void **const top = (void **)(f->stack + room);
    top[-1] = nullptr;           // where begin would return to
    top[-2] = (void *)begin;     // where the first switch returns to
    f->stack_pointer = top - 8;  // below it six registers
}

static void change(fiber *from, fiber *to) {
    ts_shim_switch_stacks(&from->stack_pointer, to->stack_pointer);
}
#else
static void set_up(fiber *f, size_t room) {
    getcontext(&f->context);
    f->context.uc_stack.ss_sp = f->stack;
    f->context.uc_stack.ss_size = room;
    f->context.uc_link = nullptr;
    makecontext(&f->context, begin, 0);
}

static void change(fiber *from, fiber *to) {
    swapcontext(&from->context, &to->context);
}
#endif

void fiber_switch(fiber *from, fiber *to) {
    previous = from;
    current = to;
#ifdef TS_SHIM_ASAN
    __sanitizer_start_switch_fiber(&from->fake_stack, to->stack, to->bytes);
#endif
    change(from, to);
    arrive(from);
}

fiber *fiber_pool::take(void (*entry)(fiber *self)) {
    if (!free_.empty()) {
        fiber *const f = free_.back();
        free_.pop_back();
        return f;
    }
    char *const memory = (char *)mmap(nullptr, GUARD + STACK, PROT_READ | PROT_WRITE,
                                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        ts_shim_die("out of memory for the stacks of a block's threads");
    }
    mprotect(memory, GUARD, PROT_NONE);
    fiber *const f = new fiber{};
    f->stack = memory + GUARD;
    f->bytes = STACK;
    // Stacks begin at different places of a page, or they would all compete for the same lines of the cache.
    set_up(f, STACK - all_.size() * 5 * 64 % 4096);
    first_function = entry;
    all_.push_back(f);
    return f;
}

fiber_pool::~fiber_pool() {
    for (fiber *f : all_) {
        munmap(f->stack - GUARD, GUARD + STACK);
        delete f;
    }
}

}  // namespace shim
