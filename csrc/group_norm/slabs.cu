// Which slabs images are cut into. No choice here has been measured on a GPU.
#include <numeric>

#include "group_norm/slab.cuh"

namespace bitfast::gpu {
namespace {

constexpr int kLine = 64;            // channels read side by side: a line of a cache in 16 bits
constexpr int kFillBytes = 24 << 10;  // slabs of small images are filled up to this with more images

struct Device {
  int shared_bytes;  // that two blocks of a multiprocessor may have each: one loads while the other computes
  int most_cluster;
};

cudaError_t this_device(Device* found) {
  int device = 0, whole = 0, most = 0, reserved = 0, major = 0;
  BITFAST_RETURN_IF_ERROR(cudaGetDevice(&device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&whole, cudaDevAttrMaxSharedMemoryPerMultiprocessor, device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&most, cudaDevAttrMaxSharedMemoryPerBlockOptin, device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&reserved, cudaDevAttrReservedSharedMemoryPerBlock, device));
  BITFAST_RETURN_IF_ERROR(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device));
  // Clusters of 16 are for the GPUs of data centres: those of compute capability 9 and 10.
  *found = {std::min(most, whole / 2 - reserved), major < 9 ? 1 : major <= 10 ? 16 : 8};
  return cudaSuccess;
}

int64_t image_bytes(const Images& x, Way way, int channels, int cluster) {
  const int64_t pixels = (x.pixels + cluster - 1) / cluster, bytes = x.type == Type::kFloat32 ? 4 : 2;
  return (way == Way::kForward ? 1 : 2) * pixels * channels * bytes;
}

int64_t shared_bytes(const Images& x, Way way, int lanes, const Slabs& s) {
  const int channels = s.groups * (x.channels / x.groups);
  const int floats = SlabScratch::floats(kSlabThreads * lanes, s.images * channels, s.images * s.groups);
  return s.images * image_bytes(x, way, channels, s.cluster) + floats * int64_t(sizeof(float));
}

}  // namespace

cudaError_t choose_slabs(const Images& x, Way way, Slabs* slabs, std::string* objection) {
  Device device{};
  BITFAST_RETURN_IF_ERROR(this_device(&device));
  const int lanes = x.type == Type::kFloat32 ? kLanes<float> : kLanes<BFloat16>, per_group = x.channels / x.groups;
  objection->clear();
  if (x.channels % lanes) {
    *objection = "its channels are not a multiple of " + std::to_string(lanes);
    return cudaSuccess;
  }
  // Whole vectors, and a line of a cache, in every slab.
  const int whole = lanes / std::gcd(lanes, per_group), wanted = (kLine + per_group - 1) / per_group;
  Slabs s{std::min((wanted + whole - 1) / whole * whole, x.groups), 1, 1, 0};
  const int channels = s.groups * per_group, vectors = channels / lanes;
  if (vectors > kSlabThreads) {
    *objection = "its groups are of " + std::to_string(per_group) + " channels";
    return cudaSuccess;
  }
  while (s.cluster < device.most_cluster && s.cluster < x.pixels && shared_bytes(x, way, lanes, s) > device.shared_bytes)
    s.cluster *= 2;
  if (shared_bytes(x, way, lanes, s) > device.shared_bytes) {
    *objection = "a slab of its images takes " + std::to_string(image_bytes(x, way, channels, 1) >> 10) +
                 " KB of shared memory, more than " + std::to_string(s.cluster) + " of this GPU's blocks have";
    return cudaSuccess;
  }
  while (s.cluster == 1 && 2 * s.images * vectors <= kSlabThreads && s.images < x.n &&
         2 * s.images * image_bytes(x, way, channels, 1) <= kFillBytes)
    s.images *= 2;
  s.shared_bytes = int(shared_bytes(x, way, lanes, s));
  if (s.shared_bytes > device.shared_bytes) s = {s.groups, 1, 1, int(shared_bytes(x, way, lanes, {s.groups, 1, 1, 0}))};
  *slabs = s;
  return cudaSuccess;
}

}  // namespace bitfast::gpu
