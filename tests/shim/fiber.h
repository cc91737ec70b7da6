// SPDX-License-Identifier: Apache-2.0
// Stacks to run a kernel's threads on, and going from one to another: a few instructions on x86-64, swapcontext
// elsewhere.
#ifndef TS_SHIM_FIBER_H
#define TS_SHIM_FIBER_H

#include <cstddef>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace shim {

struct fiber {
    void *stack_pointer;
    char *stack;  // lowest address
    size_t bytes;
    void *fake_stack;  // AddressSanitizer's
#if !defined(__x86_64__)
    ucontext_t context;
#endif
};

// Goes on where `to` stopped, or in its entry; returns when somebody goes to `from`.
void fiber_switch(fiber *from, fiber *to);

// Stacks that begin in `entry`, which gets its own and never returns. Those given back are taken again, and go on
// behind the switch they stopped in.
class fiber_pool {
  public:
    ~fiber_pool();
    fiber *take(void (*entry)(fiber *self));
    void give(fiber *unused) { free_.push_back(unused); }

  private:
    std::vector<fiber *> all_, free_;
};

}  // namespace shim

#endif
