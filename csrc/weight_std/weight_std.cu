// Weight standardization, its projection and the optimizer step on a GPU. A row is read from memory once where shared
// memory holds it; a warp or a block sweeps over it there.
#include "weight_std/rows.cuh"

namespace bitfast::gpu {
namespace {

__global__ void __launch_bounds__(kThreads, 2) standardize_kernel(const __grid_constant__ Table table) {
  DYNAMIC_SHARED(shared);
  const Tensor c = table.of_block(int(blockIdx.x));
  const int block = int(blockIdx.x) - c.first_block;
  with_row<float>(c, block, reinterpret_cast<char*>(shared),
                  [&](const auto& team, int, int64_t begin, const float* w, const float*, float*) {
                    write_w_hat(team, c, begin, w, statistics(team, w, c.width, c.eps));
                  });
}

__global__ void __launch_bounds__(kThreads, 2) project_kernel(const __grid_constant__ Table table) {
  DYNAMIC_SHARED(shared);
  const Tensor c = table.of_block(int(blockIdx.x));
  const int block = int(blockIdx.x) - c.first_block;
  with_type(c.d_type, [&](auto value) {
    using D = decltype(value);
    with_row<D>(c, block, reinterpret_cast<char*>(shared),
                [&](const auto& team, int row, int64_t begin, const float* w, const D* d, float*) {
                  const Projection to_g = projection(team, c, w, d);
                  float* const g = c.result ? static_cast<float*>(c.result) + begin : nullptr;
                  float square[1] = {};
                  for (int i = team.rank(); i < c.width; i += team.kSize) {
                    const float value = to_g(as_float(d[c.of_d(i)]), w[i]);
                    if (g) g[i] = value;
                    square[0] += value * value;
                  }
                  if (!c.m) return;
                  team.add(square);
                  if (team.rank() == 0) c.m[row] = sqrtf(square[0]);
                });
  });
}

// The new w; m and the average of it are renewed where there are any.
__device__ float moved(float w, float g, float* m, float* average, const SgdRule& rule) {
  g += rule.weight_decay * w;
  if (m) *m = g = rule.momentum * *m + g;
  w = rule.shrink * w - rule.lr * g;
  if (average) *average += rule.average_step * (w - *average);
  return w;
}

template <class D>
__device__ void step_elements(const Tensor& c, int block, const SgdRule& rule) {
  const D* const d = static_cast<const D*>(c.d);
  const int64_t begin = int64_t(block) * kBlockElements, count = int64_t(c.rows) * c.width;
  const int64_t end = begin + kBlockElements < count ? begin + kBlockElements : count;
  const bool turned = c.d_turned || c.m_turned || c.average_turned;
#pragma unroll 4
  for (int64_t i = begin + threadIdx.x; i < end; i += kThreads) {
    int64_t of_d = i, of_m = i, of_average = i;
    if (turned) {
      const int in_row = int(i % c.width);
      of_d += c.of_d(in_row) - in_row;
      of_m += c.of_m(in_row) - in_row;
      of_average += c.of_average(in_row) - in_row;
    }
    float* const average = c.average ? c.average + of_average : nullptr;
    c.w[i] = moved(c.w[i], as_float(d[of_d]), c.m ? c.m + of_m : nullptr, average, rule);
  }
}

template <class D>
__device__ void step_rows(const Tensor& c, int block, char* shared, const SgdRule& rule) {
  with_row<D>(c, block, shared, [&](const auto& team, int, int64_t begin, const float* w, const D* d, float* copy) {
    const Projection to_g = projection(team, c, w, d);
    float* const w_out = c.w + begin;
    float *const m = c.m ? c.m + begin : nullptr, *const average = c.average ? c.average + begin : nullptr;
    float sum = 0;
    if (copy) team.sync();  // w is read along d above, and replaced along w here
#pragma unroll 2
    for (int i = team.rank(); i < c.width; i += team.kSize) {
      const float next = moved(w[i], to_g(as_float(d[c.of_d(i)]), w[i]), m ? m + c.of_m(i) : nullptr,
                               average ? average + c.of_average(i) : nullptr, rule);
      w_out[i] = next;
      if (copy) copy[i] = next;
      sum += next;
    }
    team.sync();
    write_w_hat(team, c, begin, w, statistics(team, sum, w, c.width, c.eps));
  });
}

__global__ void __launch_bounds__(kThreads, 2) step_kernel(const __grid_constant__ Table table, const SgdRule rule) {
  DYNAMIC_SHARED(shared);
  const Tensor c = table.of_block(int(blockIdx.x));
  const int block = int(blockIdx.x) - c.first_block;
  with_type(c.d_type, [&](auto value) {
    using D = decltype(value);
    if (c.kind == Kind::kElements)
      step_elements<D>(c, block, rule);
    else
      step_rows<D>(c, block, reinterpret_cast<char*>(shared), rule);
  });
}

// One launch for every kColumns tensors.
template <class... Rule>
cudaError_t launch(void (*kernel)(Table, Rule...), std::vector<Column> columns, int shared_bytes, cudaStream_t stream,
                   const Rule&... rule) {
  std::stable_sort(columns.begin(), columns.end(), comes_before);
  BITFAST_RETURN_IF_ERROR(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  for (size_t first = 0; first < columns.size(); first += kColumns) {
    Table table{};
    table.count = int(std::min<size_t>(columns.size() - first, kColumns));
    for (int i = 0; i < table.count; ++i) {
      table.columns[i] = columns[first + i];
      table.columns[i].first_block = table.blocks;
      table.blocks += blocks_of(table.columns[i]);
    }
    cudaLaunchConfig_t config{};
    config.gridDim.x = unsigned(table.blocks);
    config.blockDim.x = kThreads;
    config.dynamicSmemBytes = size_t(shared_bytes);
    config.stream = stream;
    BITFAST_RETURN_IF_ERROR(cudaLaunchKernelEx(&config, kernel, table, rule...));
  }
  return cudaSuccess;
}

// Columns of the tensors that have rows, and the shared memory that a block of any of them needs.
struct Columns {
  int shared_limit = 0, shared_bytes = 0;
  std::vector<Column> all;

  void add(const Weight& weight, void* m, bool standardized) {
    if (weight.rows * weight.width == 0) return;
    all.push_back(column(weight, m, standardized, shared_limit));
    shared_bytes = std::max(shared_bytes, shared_bytes_of(all.back(), d_bytes(weight)));
  }
};

}  // namespace

cudaError_t weight_standardize(const Weight* weights, int64_t count, cudaStream_t stream) {
  Columns columns;
  BITFAST_RETURN_IF_ERROR(shared_memory_of_block(&columns.shared_limit));
  for (int64_t i = 0; i < count; ++i) columns.add(weights[i], nullptr, true);
  return launch(standardize_kernel, columns.all, columns.shared_bytes, stream);
}

cudaError_t weight_standardize_backward(const Weight* weights, int64_t count, float* norms, cudaStream_t stream) {
  Columns columns;
  BITFAST_RETURN_IF_ERROR(shared_memory_of_block(&columns.shared_limit));
  for (int64_t i = 0; i < count; ++i) {
    columns.add(weights[i], norms, true);
    if (norms) norms += weights[i].rows;
  }
  return launch(project_kernel, columns.all, columns.shared_bytes, stream);
}

cudaError_t standardized_sgd_step(const Weight* weights, int64_t count, const SgdRule& rule, cudaStream_t stream) {
  Columns columns;
  BITFAST_RETURN_IF_ERROR(shared_memory_of_block(&columns.shared_limit));
  for (int64_t i = 0; i < count; ++i) columns.add(weights[i], weights[i].m.data, weights[i].result.data != nullptr);
  return launch(step_kernel, columns.all, columns.shared_bytes, stream, rule);
}

}  // namespace bitfast::gpu
