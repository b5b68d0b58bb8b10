// A stack to run on, and the change from one to another; on x86-64 without the system calls of ucontext.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#ifdef __x86_64__

extern "C" void simt_change_stack(void** from, void* to);

asm(R"(
.text
.hidden simt_change_stack
.globl simt_change_stack
.type simt_change_stack, @function
simt_change_stack:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_change_stack, .-simt_change_stack
)");

namespace simt {

class Fiber {
 public:
  Fiber() = default;  // that of the caller
  Fiber(char* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(reinterpret_cast<uintptr_t>(stack + bytes) / 16 * 16);
    *--top = nullptr;  // a function begins 8 bytes past a multiple of 16
    *--top = reinterpret_cast<void*>(entry);
    pointer_ = top - 6;
  }

  void change_to(Fiber& other) { simt_change_stack(&pointer_, other.pointer_); }

 private:
  void* pointer_ = nullptr;
};

}  // namespace simt

#else

#include <ucontext.h>

namespace simt {

class Fiber {
 public:
  Fiber() : context_(std::make_unique<ucontext_t>()) {}
  Fiber(char* stack, size_t bytes, void (*entry)()) : Fiber() {
    getcontext(context_.get());
    context_->uc_stack.ss_sp = stack;
    context_->uc_stack.ss_size = bytes;
    makecontext(context_.get(), entry, 0);
  }

  void change_to(Fiber& other) { swapcontext(context_.get(), other.context_.get()); }

 private:
  std::unique_ptr<ucontext_t> context_;
};

}  // namespace simt

#endif
