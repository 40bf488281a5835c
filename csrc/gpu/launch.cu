// The kernels on a card, by CUDA's own runtime, which is linked in.
#include <cuda_runtime.h>

#include "kernels.h"

namespace alignjax {
namespace {

constexpr int kWarp = 32, kMostLanes = 128;

// Threads of a block that share a network.
struct BlockThreads {
  __device__ int index() const { return static_cast<int>(threadIdx.x); }
  __device__ int count() const { return static_cast<int>(blockDim.x); }
  __device__ void barrier() const { __syncthreads(); }
  __device__ bool all(bool x) const { return __syncthreads_and(x) != 0; }
};

template <class T, int K, int D>
__global__ void __launch_bounds__(kMostLanes) lanes_kernel(const __grid_constant__ Job job) {
  const std::int64_t index = std::int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  if (index < job.networks) lane<T, K, D>(job, index);
}

template <class T, int R>
__global__ void __launch_bounds__(R == 2 ? 64 : 256, 1) tiles_kernel(const __grid_constant__ Job job) {
  extern __shared__ __align__(64) char shared[];
  tiles<T, R>(job, BlockThreads{}, shared, blockIdx.x);
}

const char* text(cudaError_t status) {
  return status == cudaSuccess ? nullptr : cudaGetErrorString(status);
}

const char* attribute(int& out, cudaDeviceAttr which) {
  int device = 0;
  const cudaError_t status = cudaGetDevice(&device);
  return text(status == cudaSuccess ? cudaDeviceGetAttribute(&out, which, device) : status);
}

template <class T>
const char* launch_lanes(const Job& job, int multiprocessors, cudaStream_t stream) {
  // Small blocks reach every multiprocessor with the fewest networks; large ones are fewer.
  const std::int64_t many = std::int64_t{4} * kMostLanes * multiprocessors;
  const int threads = job.networks < many ? kWarp : kMostLanes;
  const std::int64_t blocks = (job.networks + threads - 1) / threads;
  if (blocks > 0x7fffffff) return "too many networks for one call";
  const bool known = with_lane<T>(job.widths[0], job.depth, [&](auto k, auto d) {
    lanes_kernel<T, static_cast<int>(k.value), static_cast<int>(d.value)>
        <<<static_cast<unsigned>(blocks), threads, 0, stream>>>(job);
  });
  return known ? text(cudaGetLastError()) : "no kernel by lanes has these widths";
}

}  // namespace

const char* find_room(Job& job) {
  int bytes = 0;
  const char* error = attribute(bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin);
  job.room = static_cast<std::size_t>(bytes);
  return error;
}

const char* find_blocks(Job& job) {
  int multiprocessors = 0, resident = 0;
  const char* error = attribute(multiprocessors, cudaDevAttrMultiProcessorCount);
  if (error != nullptr) return error;
  cudaError_t status = cudaSuccess;
  with_tiles(job, [&](auto number, auto side) {
    const auto kernel = tiles_kernel<decltype(number), static_cast<int>(side.value)>;
    status = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  static_cast<int>(job.on_chip));
    if (status != cudaSuccess) return;
    status = cudaOccupancyMaxActiveBlocksPerMultiprocessor(&resident, kernel, job.threads,
                                                           job.on_chip);
  });
  const std::int64_t most = std::int64_t{resident} * multiprocessors;
  job.blocks = job.networks < most ? job.networks : most;
  if (status != cudaSuccess) return text(status);
  return resident > 0 ? nullptr : "a block of threads finds no room on this card";
}

const char* launch(const Job& job, void* stream) {
  const auto on = static_cast<cudaStream_t>(stream);
  if (job.lanes) {
    int multiprocessors = 0;
    const char* error = attribute(multiprocessors, cudaDevAttrMultiProcessorCount);
    if (error != nullptr) return error;
    return job.item == 4 ? launch_lanes<float>(job, multiprocessors, on)
                         : launch_lanes<double>(job, multiprocessors, on);
  }
  with_tiles(job, [&](auto number, auto side) {
    tiles_kernel<decltype(number), static_cast<int>(side.value)>
        <<<static_cast<unsigned>(job.blocks), job.threads, job.on_chip, on>>>(job);
  });
  return text(cudaGetLastError());
}

}  // namespace alignjax

// Why there is no card that this can run on, or null.
extern "C" __attribute__((visibility("default"))) const char* alignjax_gpu_objection() {
  int count = 0;
  return alignjax::text(cudaGetDeviceCount(&count));
}
