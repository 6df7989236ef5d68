#include <cuda_runtime.h>

#include "finish.h"

namespace fastfeed {
namespace {

template <class T, int C, bool CHANNELS_LAST>
__global__ void finish_kernel(FinishArgs a) {
    // 256 x C entries, at most 4 KiB: shared memory serves the scattered reads that L1 would split.
    __shared__ T table[256 * C];
    const T* source = static_cast<const T*>(a.table);
    for (int i = threadIdx.x; i < 256 * C; i += blockDim.x) table[i] = source[i];
    __syncthreads();

    const int64_t pixels = a.n * a.h * a.w;
    const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x; i < pixels; i += step) {
        const int64_t row = i / a.w;
        const int64_t n = row / a.h;
        finish_pixel<T, C, CHANNELS_LAST>(a, table, n, row % a.h, i % a.w, a.flip != nullptr && a.flip[n] != 0);
    }
}

struct CudaLaunch {
    cudaStream_t stream;

    template <class T, int C, bool CHANNELS_LAST>
    void run(const FinishArgs& a) const {
        constexpr int threads = 256;
        const int64_t blocks = (a.n * a.h * a.w + threads - 1) / threads;
        // A bounded grid amortises filling the shared table; 4096 blocks fill the largest GPUs several times.
        finish_kernel<T, C, CHANNELS_LAST><<<blocks < 4096 ? blocks : 4096, threads, 0, stream>>>(a);
    }
};

// Makes `device` current for one scope and puts the caller's device back.
class DeviceGuard {
  public:
    explicit DeviceGuard(int device) {
        error_ = cudaGetDevice(&previous_);
        if (error_ == cudaSuccess && previous_ != device) {
            error_ = cudaSetDevice(device);
            changed_ = error_ == cudaSuccess;
        }
    }
    ~DeviceGuard() {
        if (changed_) cudaSetDevice(previous_);
    }
    DeviceGuard(const DeviceGuard&) = delete;
    DeviceGuard& operator=(const DeviceGuard&) = delete;
    cudaError_t error() const { return error_; }

  private:
    int previous_ = 0;
    bool changed_ = false;
    cudaError_t error_ = cudaSuccess;
};

}  // namespace

const char* finish_cuda(const FinishArgs& args, int device, void* stream) {
    if (args.n * args.h * args.w == 0) return nullptr;
    DeviceGuard guard(device);
    if (guard.error() != cudaSuccess) return cudaGetErrorString(guard.error());
    if (!dispatch_finish(args, CudaLaunch{static_cast<cudaStream_t>(stream)})) {
        return "unsupported number of channels or element size";
    }
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastfeed
