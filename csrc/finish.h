// The last pass: uint8 [N, H, W, C] -> horizontal flip, table lookup (normalise and cast) -> NHWC or NCHW.
//
// The mathematics and the indexing stand here once, for the C++ loop and for the CUDA kernel. Normalising a
// byte has only 256 results per channel, so they come from a table made by the eager formula: every output
// type is then bit for bit what eager PyTorch gives, on both devices, and a pixel costs one load more.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTFEED_HD __host__ __device__ __forceinline__
#else
#define FASTFEED_HD inline
#endif

namespace fastfeed {

struct FinishArgs {
    const uint8_t* src;   // [N, H, W, C], contiguous
    void* dst;            // N * H * W * C elements of `element_size` bytes
    const uint8_t* flip;  // [N], non-zero mirrors the sample left to right; nullptr mirrors none
    const void* table;    // [256, C] elements of `element_size` bytes
    int64_t n, h, w;
    int c;                // 1, 3 or 4
    int element_size;     // 2 (fp16, bf16) or 4 (fp32)
    bool channels_last;   // dst is [N, H, W, C], else [N, C, H, W]
};

// Writes the C values of output pixel (n, y, x).
template <class T, int C, bool CHANNELS_LAST>
FASTFEED_HD void finish_pixel(const FinishArgs& a, const T* table, int64_t n, int64_t y, int64_t x, bool flip) {
    const int64_t row = n * a.h + y;
    const uint8_t* src = a.src + (row * a.w + (flip ? a.w - 1 - x : x)) * C;
    T* dst = static_cast<T*>(a.dst);
    for (int c = 0; c < C; ++c) {
        const int64_t out = CHANNELS_LAST ? (row * a.w + x) * C + c : ((n * C + c) * a.h + y) * a.w + x;
        dst[out] = table[src[c] * C + c];
    }
}

// Calls launch.template operator()<T, C, CHANNELS_LAST>() for the types that `a` names; false if there are none.
template <class Launch>
bool dispatch_finish(const FinishArgs& a, const Launch& launch) {
#define FASTFEED_LAYOUT(T, C) (a.channels_last ? launch.template run<T, C, true>(a) : launch.template run<T, C, false>(a))
#define FASTFEED_CHANNELS(T)                                \
    switch (a.c) {                                          \
        case 1: FASTFEED_LAYOUT(T, 1); return true;         \
        case 3: FASTFEED_LAYOUT(T, 3); return true;         \
        case 4: FASTFEED_LAYOUT(T, 4); return true;         \
        default: return false;                              \
    }
    switch (a.element_size) {
        case 2: FASTFEED_CHANNELS(uint16_t)
        case 4: FASTFEED_CHANNELS(uint32_t)
        default: return false;
    }
#undef FASTFEED_CHANNELS
#undef FASTFEED_LAYOUT
}

bool finish_cpu(const FinishArgs& args, int threads);
const char* finish_cpu_simd();

#ifdef FASTFEED_CUDA
// `stream` is a cudaStream_t. Returns nullptr, or what CUDA says is wrong.
const char* finish_cuda(const FinishArgs& args, int device, void* stream);
#endif

}  // namespace fastfeed
