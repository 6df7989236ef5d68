#include "bilinear.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastfeed {
namespace {

#define FASTFEED_INLINE inline __attribute__((always_inline))

// The channels of a pixel side by side, and a fourth that is not used. Compilers split these into what the processor
// has.
typedef int32_t Whole __attribute__((vector_size(16)));
typedef double Vector __attribute__((vector_size(32)));

FASTFEED_INLINE void load(const uint8_t* pixel, Vector& vector) {
#if defined(__x86_64__)
    int32_t four;
    std::memcpy(&four, pixel, sizeof four);
    const __m128i zero = _mm_setzero_si128(), words = _mm_unpacklo_epi8(_mm_cvtsi32_si128(four), zero);
    vector = __builtin_convertvector(reinterpret_cast<Whole>(_mm_unpacklo_epi16(words, zero)), Vector);
#else
    for (int c = 0; c < 3; ++c) vector[c] = pixel[c];
    vector[3] = 0;
#endif
}

FASTFEED_INLINE void store(const Vector& vector, uint8_t* pixel) {
    const auto whole = __builtin_convertvector(vector, Whole);
    for (int c = 0; c < 3; ++c) pixel[c] = static_cast<uint8_t>(whole[c]);
}

// Two neighbours on a line, and where between them.
struct Between {
    Between(double place, int64_t size) {
        place -= 0.5;
        const int64_t low = place < 0 ? -1 : static_cast<int64_t>(place);
        share = place - static_cast<double>(low);
        first = std::max<int64_t>(low, 0);
        second = std::min<int64_t>(low + 1, size - 1);
    }
    int64_t first, second;
    double share;
};

// In doubles, first along the row, and cut off: Pillow's roundings.
FASTFEED_INLINE void interpolate(const uint8_t* source, const Between& x, const Between& y, int64_t width,
                                 uint8_t* out) {
    const uint8_t *upper_row = source + y.first * width * 3, *lower_row = source + y.second * width * 3;
    Vector upper, lower, right;
    load(upper_row + x.first * 3, upper);
    load(upper_row + x.second * 3, right);
    upper += (right - upper) * x.share;
    load(lower_row + x.first * 3, lower);
    load(lower_row + x.second * 3, right);
    lower += (right - lower) * x.share;
    upper += (lower - upper) * y.share;
    store(upper, out);
}

FASTFEED_INLINE void warp_rows(const uint8_t* source, uint8_t* out, int64_t height, int64_t width,
                               const std::array<double, 6>& m, const std::array<uint8_t, 3>& fill) {
    const double right = static_cast<double>(width), bottom = static_cast<double>(height);
    for (int64_t row = 0; row < height; ++row) {
        const double y = static_cast<double>(row) + 0.5;
        for (int64_t column = 0; column < width; ++column, out += 3) {
            const double x = static_cast<double>(column) + 0.5;
            const double from_x = m[0] * x + m[1] * y + m[2], from_y = m[3] * x + m[4] * y + m[5];
            if (from_x >= 0 && from_x < right && from_y >= 0 && from_y < bottom) {
                interpolate(source, {from_x, width}, {from_y, height}, width, out);
            } else {
                std::memcpy(out, fill.data(), 3);
            }
        }
    }
}

#if defined(__x86_64__)
namespace avx2 {
__attribute__((target("avx2"))) void warp(const uint8_t* source, uint8_t* out, int64_t height, int64_t width,
                                          const std::array<double, 6>& m, const std::array<uint8_t, 3>& fill) {
    warp_rows(source, out, height, width, m, fill);
}
}  // namespace avx2
#endif

}  // namespace

void warp_bilinear(const uint8_t* source, uint8_t* out, int64_t height, int64_t width, const std::array<double, 6>& m,
                   const std::array<uint8_t, 3>& fill) {
#if defined(__x86_64__)
    if (simd() >= Simd::avx2) return avx2::warp(source, out, height, width, m, fill);
#endif
    warp_rows(source, out, height, width, m, fill);
}

}  // namespace fastfeed
