#include "blur.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "buffer.h"
#include "simd.h"

namespace fastfeed {
namespace {

constexpr int BLOCK = 64;  // values side by side, in vectors of any width

#define FASTFEED_INLINE inline __attribute__((always_inline))

// The middle weight of a kernel and those to one side of it, of which all and the same again add up to 1.
std::vector<float> half_kernel(int64_t size, float sigma) {
    std::vector<double> exact(size / 2 + 1);
    double sum = 0;
    for (size_t i = 0; i < exact.size(); ++i) {
        const double distance = static_cast<double>(i) / static_cast<double>(sigma);
        exact[i] = std::exp(-0.5 * distance * distance);
        sum += i == 0 ? exact[i] : 2 * exact[i];
    }
    // The tails are left out if together they weigh less than fp32 resolves.
    size_t count = exact.size();
    for (double rest = exact[count - 1]; count > 1 && rest < 0x1p-26 * sum; rest += exact[count - 1]) --count;
    std::vector<float> kernel(count);
    for (size_t i = 0; i < count; ++i) kernel[i] = static_cast<float>(exact[i] / sum);
    return kernel;
}

int64_t reflect(int64_t i, int64_t size) { return i < 0 ? -i : i < size ? i : 2 * (size - 1) - i; }

// Compilers split these into what the processor has. Sums in arrays of floats they would keep in memory.
constexpr int LANES = 16;
typedef float Vector __attribute__((vector_size(LANES * sizeof(float))));

FASTFEED_INLINE void load(const float* from, Vector& vector) { std::memcpy(&vector, from, sizeof vector); }

// One block of what a kernel makes of values: taps[r] points to the middle ones, taps[r - j] and taps[r + j] to those
// that lie j pixels to either side, where r = kernel.size() - 1. Each pair is added before it is weighed, so that the
// two sides may change places.
FASTFEED_INLINE void weigh(const float* const* taps, const std::vector<float>& kernel, int64_t begin, float* out) {
    const auto reach = static_cast<int64_t>(kernel.size()) - 1;
    Vector sum[BLOCK / LANES];
    for (int i = 0; i < BLOCK / LANES; ++i) {
        load(taps[reach] + begin + i * LANES, sum[i]);
        sum[i] *= kernel[0];
    }
    for (int64_t j = 1; j <= reach; ++j) {
        const float *before = taps[reach - j] + begin, *after = taps[reach + j] + begin, weight = kernel[j];
        for (int i = 0; i < BLOCK / LANES; ++i) {
            Vector one, other;
            load(before + i * LANES, one);
            load(after + i * LANES, other);
            sum[i] += weight * (one + other);
        }
    }
    std::memcpy(out, sum, sizeof sum);
}

// The nearest level, halves to even: a float this large has no bits for less than a whole.
FASTFEED_INLINE uint8_t to_byte(float value) {
    const float whole = value + 0x1p23f;
    uint32_t bits;
    std::memcpy(&bits, &whole, sizeof bits);
    return static_cast<uint8_t>(bits);
}

struct Blur {
    uint8_t* pixels;
    int64_t height, width;
    std::vector<float> down, across;  // half kernels
};

// Rows are blurred across into a ring of as many as one row of the output is made of, and then down.
FASTFEED_INLINE void blur_rows(const Blur& blur) {
    const int64_t size = 3 * blur.width, padded = (size + BLOCK - 1) / BLOCK * BLOCK;
    const int64_t reach_x = static_cast<int64_t>(blur.across.size()) - 1;
    const int64_t reach_y = static_cast<int64_t>(blur.down.size()) - 1, rows = 2 * reach_y + 1;
    const int64_t reflected = padded + 6 * reach_x;
    const Buffer<float> row(reflected), ring(rows * padded);
    std::fill_n(row.get(), reflected, 0.0f);  // the last block reads beyond the image
    std::vector<const float*> taps_x(2 * reach_x + 1), taps_y(rows);
    for (int64_t j = 0; j <= 2 * reach_x; ++j) taps_x[j] = row.get() + 3 * j;
    int64_t made = 0;
    for (int64_t y = 0; y < blur.height; ++y) {
        for (; made <= std::min(y + reach_y, blur.height - 1); ++made) {
            const uint8_t* source = blur.pixels + made * size;
            float* __restrict values = row.get() + 3 * reach_x;
            for (int64_t i = 0; i < size; ++i) values[i] = source[i];
            for (int64_t x = -reach_x; x < 0; ++x) {
                std::memcpy(values + 3 * x, values + 3 * reflect(x, blur.width), 3 * sizeof(float));
                const int64_t right = blur.width - 1 - x;
                std::memcpy(values + 3 * right, values + 3 * reflect(right, blur.width), 3 * sizeof(float));
            }
            float* out = ring.get() + made % rows * padded;
            for (int64_t begin = 0; begin < size; begin += BLOCK) weigh(taps_x.data(), blur.across, begin, out + begin);
        }
        for (int64_t j = 0; j < rows; ++j) {
            taps_y[j] = ring.get() + reflect(y + j - reach_y, blur.height) % rows * padded;
        }
        uint8_t* out = blur.pixels + y * size;
        for (int64_t begin = 0; begin < size; begin += BLOCK) {
            alignas(64) float sum[BLOCK];
            uint8_t bytes[BLOCK];
            weigh(taps_y.data(), blur.down, begin, sum);
            for (int i = 0; i < BLOCK; ++i) bytes[i] = to_byte(sum[i]);
            std::memcpy(out + begin, bytes, std::min<int64_t>(BLOCK, size - begin));
        }
    }
}

#if defined(__x86_64__)
namespace avx2 {
__attribute__((target("avx2"))) void blur(const Blur& blur) { blur_rows(blur); }
}  // namespace avx2

namespace avx512 {
__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512"))) void blur(const Blur& blur) {
    blur_rows(blur);
}
}  // namespace avx512
#endif

}  // namespace

void gaussian_blur(uint8_t* pixels, int64_t height, int64_t width, int64_t kernel_height, int64_t kernel_width,
                   float sigma) {
    const Blur blur{pixels, height, width, half_kernel(kernel_height, sigma), half_kernel(kernel_width, sigma)};
#if defined(__x86_64__)
    if (simd() >= Simd::avx512) return avx512::blur(blur);
    if (simd() >= Simd::avx2) return avx2::blur(blur);
#endif
    blur_rows(blur);
}

}  // namespace fastfeed
