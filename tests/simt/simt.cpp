// Fibers for the threads of a cluster of blocks, and the orders they run in.
#include <algorithm>
#include <map>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"
#include "fiber.h"
#include "simt.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

namespace simt {
namespace {

constexpr size_t kStackBytes = 256 << 10;  // a kernel has its arguments, up to 32 KB, on it, and a sanitizer more
constexpr int kWarp = 32;
constexpr size_t kUsualShared = 48 << 10;

struct Refused {
  cudaError_t code;
  std::string why;
};

// Lets all of `members` through once they are there.
struct Barrier {
  int members = 0, arrived = 0;
  uint64_t passed = 0;
};

struct Warp {
  Barrier barrier;
  uint64_t values[2][kWarp];
};

struct Copy {
  void* to;
  const void* from;
  size_t bytes;
};

struct Block {
  uint3 index;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<char[]> shared;
};

struct Thread {
  uint3 index;
  Block* block;
  Warp* warp;
  std::unique_ptr<char[]> stack;
  Fiber fiber;
  const Barrier* waits_for = nullptr;
  uint64_t until = 0;
  int exchanges = 0;
  bool done = false;
  std::vector<Copy> copies;

  bool can_run() const { return !done && (!waits_for || waits_for->passed >= until); }
};

struct Attributes {
  size_t shared = kUsualShared;
  bool large_clusters = false;
};

Settings settings_now;
std::string last_error;
std::map<const void*, Attributes> attributes_of;

std::vector<Block> blocks;  // of the cluster that runs
std::vector<Thread> threads;
Barrier cluster;
Thread* running;
Fiber scheduler;
const std::function<void()>* body;

[[noreturn]] void refuse(cudaError_t code, std::string why) { throw Refused{code, std::move(why)}; }

// A misuse by the thread that runs ends the launch: the scheduler, on its own stack, throws.
std::string misuse;
void stop(std::string why) {
  misuse = std::move(why);
  running->fiber.change_to(scheduler);
}

void wait(Barrier& barrier) {
  running->waits_for = &barrier;
  running->until = barrier.passed + 1;
  if (++barrier.arrived == barrier.members) {
    barrier.arrived = 0;
    ++barrier.passed;
  }
  running->fiber.change_to(scheduler);
}

void check_mask(unsigned mask) {
  const int lanes = running->warp->barrier.members;
  const unsigned all = lanes == kWarp ? ~0u : (1u << lanes) - 1;
  if ((mask & all) != all) stop("a warp's lanes wait for each other without all taking part");
}

void start() {
  (*body)();
  running->done = true;
  running->fiber.change_to(scheduler);
}

void resume(Thread& thread) {
  running = &thread;
  threadIdx = thread.index;
  blockIdx = thread.block->index;
  scheduler.change_to(thread.fiber);
  if (!misuse.empty()) refuse(cudaErrorLaunchFailure, std::exchange(misuse, {}));
}

// Schedule 0 runs threads in order, 1 in reverse, any other in orders drawn anew whenever all have had their turn.
std::vector<size_t> first_order(size_t count) {
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), 0);
  if (settings_now.schedule == 1) std::reverse(order.begin(), order.end());
  return order;
}

void run_cluster(std::mt19937& random) {
  std::vector<size_t> order = first_order(threads.size());
  for (size_t left = threads.size(); left > 0;) {
    if (settings_now.schedule > 1) std::shuffle(order.begin(), order.end(), random);
    bool any = false;
    for (size_t i : order)
      if (threads[i].can_run()) {
        any = true;
        resume(threads[i]);
        left -= threads[i].done;
      }
    if (!any) refuse(cudaErrorLaunchFailure, "threads wait at a barrier that others never come to");
  }
}

void make_cluster(unsigned first, unsigned count, const cudaLaunchConfig_t& config) {
  const unsigned size = config.blockDim.x, warps = (size + kWarp - 1) / kWarp;
  blocks = std::vector<Block>(count);
  if (threads.size() != size_t(count) * size) threads = std::vector<Thread>(size_t(count) * size);
  cluster = {int(threads.size())};
  for (unsigned b = 0; b < count; ++b) {
    Block& block = blocks[b];
    block.index = {first + b, 0, 0};
    block.barrier.members = int(size);
    block.warps = std::vector<Warp>(warps);
    // As aligned as any access needs, and not a byte longer than asked for.
    block.shared.reset(static_cast<char*>(::operator new[](std::max<size_t>(config.dynamicSmemBytes, 1))));
    std::fill_n(block.shared.get(), config.dynamicSmemBytes, char(0xff));
    for (unsigned t = 0; t < size; ++t) {
      Thread& thread = threads[size_t(b) * size + t];
      std::unique_ptr<char[]> stack = std::move(thread.stack);
      if (!stack) stack.reset(new char[kStackBytes]);
      Fiber fiber(stack.get(), kStackBytes, start);
      thread = Thread{{t, 0, 0}, &block, &block.warps[t / kWarp], std::move(stack), std::move(fiber)};
      ++thread.warp->barrier.members;
    }
  }
}

unsigned cluster_size_of(const cudaLaunchConfig_t& config) {
  for (unsigned i = 0; i < config.numAttrs; ++i)
    if (config.attrs[i].id == cudaLaunchAttributeClusterDimension) return config.attrs[i].val.clusterDim.x;
  return 1;
}

void check(const cudaLaunchConfig_t& config, const Attributes& attributes) {
  const unsigned size = cluster_size_of(config);
  if (config.blockDim.x == 0 || config.blockDim.x > 1024 || config.gridDim.x == 0)
    refuse(cudaErrorInvalidConfiguration, "a grid without blocks, or a block of no or more than 1024 threads");
  if (config.dynamicSmemBytes > attributes.shared)
    refuse(cudaErrorInvalidValue, "more shared memory than the kernel's attribute allows");
  if (config.gridDim.x % size || size > (attributes.large_clusters ? 16 : 8))
    refuse(cudaErrorInvalidConfiguration, "clusters do not divide the grid, or are too large");
}

}  // namespace

void set(const Settings& settings) { settings_now = settings; }

void* dynamic_shared() { return running->block->shared.get(); }
void block_barrier() { wait(running->block->barrier); }
void cluster_barrier() { wait(cluster); }
unsigned cluster_rank() { return unsigned(running->block - blocks.data()); }
unsigned cluster_size() { return unsigned(blocks.size()); }

void warp_barrier(unsigned mask) {
  check_mask(mask);
  wait(running->warp->barrier);
}

void* shared_of_rank(void* shared, unsigned rank) {
  return blocks[rank].shared.get() + (static_cast<char*>(shared) - running->block->shared.get());
}

uint64_t exchange(unsigned mask, uint64_t value, int from) {
  check_mask(mask);
  uint64_t* const values = running->warp->values[running->exchanges++ % 2];
  values[running->index.x % kWarp] = value;
  wait(running->warp->barrier);
  return values[from];
}

void copy_later(void* to, const void* from, size_t bytes) {
  if ((bytes != 4 && bytes != 8 && bytes != 16) || uintptr_t(to) % bytes || uintptr_t(from) % bytes)
    stop("an asynchronous copy of other than 4, 8 or 16 aligned bytes");
  running->copies.push_back({to, from, bytes});
}

void copies_arrive() {
  for (const Copy& copy : running->copies) std::memcpy(copy.to, copy.from, copy.bytes);
  running->copies.clear();
}

cudaError_t set_attribute(const void* kernel, cudaFuncAttribute attribute, int value) {
  if (attribute == cudaFuncAttributeNonPortableClusterSizeAllowed)
    attributes_of[kernel].large_clusters = value;
  else if (size_t(value) > settings_now.shared_per_block)
    return cudaErrorInvalidValue;
  else
    attributes_of[kernel].shared = std::max(kUsualShared, size_t(value));
  return cudaSuccess;
}

cudaError_t launch(const cudaLaunchConfig_t& config, const void* kernel, const std::function<void()>& thread) {
  try {
    check(config, attributes_of[kernel]);
    blockDim = config.blockDim;
    gridDim = config.gridDim;
    body = &thread;
    const unsigned size = cluster_size_of(config);
    std::mt19937 random(settings_now.schedule);
    std::vector<size_t> order = first_order(config.gridDim.x / size);
    if (settings_now.schedule > 1) std::shuffle(order.begin(), order.end(), random);
    for (size_t i : order) {
      make_cluster(unsigned(i) * size, size, config);
      run_cluster(random);
    }
    return cudaSuccess;
  } catch (const Refused& refused) {
    last_error = refused.why;
    return refused.code;
  }
}

}  // namespace simt

const char* cudaGetErrorString(cudaError_t) { return simt::last_error.c_str(); }

cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const simt::Settings& s = simt::settings_now;
  *value = attribute == cudaDevAttrMaxSharedMemoryPerBlockOptin       ? int(s.shared_per_block)
           : attribute == cudaDevAttrMaxSharedMemoryPerMultiprocessor ? int(s.shared_per_block + 1024)
           : attribute == cudaDevAttrComputeCapabilityMajor           ? s.capability
                                                                      : 1024;
  return cudaSuccess;
}
