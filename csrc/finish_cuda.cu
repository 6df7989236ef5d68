#include <cuda_runtime.h>

#include "finish_gpu.h"

// The arguments stay in constant memory, where the architecture can promise that nobody writes to them.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 700
#define FASTFEED_GRID_CONSTANT
#else
#define FASTFEED_GRID_CONSTANT __grid_constant__
#endif

namespace fastfeed {
namespace {

constexpr int THREADS = 128;

// Tiles of one sample in a column of blocks, so that a sample's parameters are the same for a whole block. Four blocks
// to a multiprocessor allow 128 registers: left alone, the compiler spills one or two of 80 to make room for a sixth.
template <class T, int C, bool CHANNELS_LAST>
__global__ __launch_bounds__(THREADS, 4) void tiles_kernel(const FASTFEED_GRID_CONSTANT FinishArgs a) {
    __shared__ WarpTile<T, C, CHANNELS_LAST> tiles[THREADS / WARP];
    WarpTile<T, C, CHANNELS_LAST>& tile = tiles[threadIdx.x / WARP];
    const int lane = threadIdx.x % WARP;
    const uint32_t first = blockIdx.x * THREADS + threadIdx.x / WARP * WARP;
    if (first >= a.h * (a.w / GROUP)) return;
    for (int64_t n = blockIdx.y; n < a.n; n += gridDim.y) {
        tile.make(a, n, first, lane);
        __syncwarp();
        tile.write(a, n, first, lane);
        __syncwarp();
    }
}

template <int C>
__global__ __launch_bounds__(THREADS) void pixels_kernel(const FASTFEED_GRID_CONSTANT FinishArgs a) {
    const int64_t pixels = a.n * a.h * a.w, step = static_cast<int64_t>(gridDim.x) * THREADS;
    for (int64_t i = static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; i < pixels; i += step) {
        make_pixel<C>(a, i);
    }
}

struct CudaLaunch {
    cudaStream_t stream;

    template <class T, int C, bool CHANNELS_LAST>
    void tiles(const FinishArgs& a) const {
        const dim3 grid(blocks(a.h * (a.w / GROUP)), a.n < 65535 ? a.n : 65535);
        tiles_kernel<T, C, CHANNELS_LAST><<<grid, THREADS, 0, stream>>>(a);
    }

    template <int C>
    void pixels(const FinishArgs& a) const {
        const int64_t enough = blocks(a.n * a.h * a.w);
        pixels_kernel<C><<<enough < 65536 ? enough : 65536, THREADS, 0, stream>>>(a);
    }

    static int64_t blocks(int64_t threads) { return (threads + THREADS - 1) / THREADS; }
};

}  // namespace

const char* finish_cuda(const FinishArgs& args, void* stream) {
    if (args.n * args.h * args.w == 0) return nullptr;
    if (!dispatch_finish(args, CudaLaunch{static_cast<cudaStream_t>(stream)})) {
        return "unsupported number of channels or output type";
    }
    const cudaError_t error = cudaGetLastError();
    return error == cudaSuccess ? nullptr : cudaGetErrorString(error);
}

}  // namespace fastfeed
