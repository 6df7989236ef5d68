#include "hue.h"

#include <algorithm>
#include <cstring>

#include "simd.h"

namespace fastfeed {
namespace {

constexpr int BLOCK = 64;  // pixels side by side, in vectors of any width

#define FASTFEED_INLINE inline __attribute__((always_inline))

// Floats of whole numbers, so that everything is vectors of one width. Pillow computes hue in floats and doubles, and
// colours from rational numbers of bytes; each step here gives what its own gives for every colour there is, which the
// tests go through.
//
// Whole numbers below 2^24 divided and cut off are exact: a quotient that is not whole lies farther from the next
// whole number than a float's rounding moves it.
FASTFEED_INLINE float quotient(float numerator, float denominator) {
    return static_cast<float>(static_cast<int32_t>(numerator / denominator));
}

// One of two values, by their bits: compilers make branches of the operator for this, and no vectors then.
FASTFEED_INLINE float choose(bool first, float a, float b) {
    int32_t bits[2];
    std::memcpy(&bits[0], &a, sizeof a);
    std::memcpy(&bits[1], &b, sizeof b);
    const int32_t chosen = bits[1] ^ ((bits[0] ^ bits[1]) & -static_cast<int32_t>(first));
    float value;
    std::memcpy(&value, &chosen, sizeof value);
    return value;
}

// The byte of a hue, 0 to 255.
FASTFEED_INLINE float hue_of(float r, float g, float b, float high, float low) {
    const float middle = r + g + b - high - low, range = high - low;
    // How far the middle one of the three is from the highest, as Pillow rounds it.
    const float rest = (high - middle) / choose(range > 0, range, 1.0f);
    const float sixths_of_red = choose(b == low, 1.0f - rest, rest - 1.0f);
    const float sixths_of_green = choose(b == low, 1.0f + rest, 3.0f - rest);
    const float sixths_of_blue = choose(r == low, 3.0f + rest, 5.0f - rest);
    const float sixths = choose(r == high, sixths_of_red, choose(g == high, sixths_of_green, sixths_of_blue));
    const float turns = sixths / 6.0f, positive = choose(turns < 0, turns + 1.0f, turns);
    const float hue = static_cast<float>(static_cast<int32_t>(positive * 255.0f));
    return choose(range > 0, hue, 0.0f);
}

FASTFEED_INLINE void turn_block(float (&red)[BLOCK], float (&green)[BLOCK], float (&blue)[BLOCK], float shift) {
    for (int i = 0; i < BLOCK; ++i) {
        const float r = red[i], g = green[i], b = blue[i];
        const float more = choose(r > g, r, g), less = choose(r > g, g, r);
        const float high = choose(b > more, b, more), low = choose(b < less, b, less);
        const float saturation = quotient((high - low) * 255.0f, choose(high > 0, high, 1.0f));
        const float turned = hue_of(r, g, b, high, low) + shift;
        const float hue = choose(turned >= 256.0f, turned - 256.0f, turned);

        const float sectors = quotient(6.0f * hue, 255.0f), into = 6.0f * hue - 255.0f * sectors;
        const float sector = choose(sectors == 6, 0.0f, sectors);  // the hue of 255
        // Rounded to nearest; an odd denominator knows no halves.
        const float p = quotient(high * (255.0f - saturation) + 127.0f, 255.0f);
        const float q = quotient(high * (65025.0f - saturation * into) + 32512.0f, 65025.0f);
        const float t = quotient(high * (65025.0f - saturation * (255.0f - into)) + 32512.0f, 65025.0f);
        // By sectors: red is v q p p t v, green t v v q p p, blue p p t v v q, with v for the highest.
        red[i] = choose(sector == 1, q, choose(sector == 4, t, choose(sector < 1, high, choose(sector < 4, p, high))));
        green[i] = choose(sector < 1, t, choose(sector == 3, q, choose(sector < 3, high, p)));
        blue[i] = choose(sector < 2, p, choose(sector == 2, t, choose(sector == 5, q, high)));
    }
}

FASTFEED_INLINE void turn_pixels(uint8_t* pixels, int64_t count, uint8_t shift) {
    for (int64_t begin = 0; begin < count; begin += BLOCK, pixels += 3 * BLOCK) {
        const int here = static_cast<int>(std::min<int64_t>(BLOCK, count - begin));
        alignas(64) float red[BLOCK], green[BLOCK], blue[BLOCK];
        for (int i = 0; i < BLOCK; ++i) {
            const uint8_t* pixel = pixels + 3 * std::min(i, here - 1);
            red[i] = pixel[0];
            green[i] = pixel[1];
            blue[i] = pixel[2];
        }
        turn_block(red, green, blue, shift);
        for (int i = 0; i < here; ++i) {
            pixels[3 * i] = static_cast<uint8_t>(static_cast<int32_t>(red[i]));
            pixels[3 * i + 1] = static_cast<uint8_t>(static_cast<int32_t>(green[i]));
            pixels[3 * i + 2] = static_cast<uint8_t>(static_cast<int32_t>(blue[i]));
        }
    }
}

#if defined(__x86_64__)
namespace avx2 {
__attribute__((target("avx2"))) void turn(uint8_t* pixels, int64_t count, uint8_t shift) {
    turn_pixels(pixels, count, shift);
}
}  // namespace avx2

namespace avx512 {
__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")))
void turn(uint8_t* pixels, int64_t count, uint8_t shift) {
    turn_pixels(pixels, count, shift);
}
}  // namespace avx512
#endif

}  // namespace

void turn_hue(uint8_t* pixels, int64_t count, uint8_t shift) {
#if defined(__x86_64__)
    if (simd() >= Simd::avx512) return avx512::turn(pixels, count, shift);
    if (simd() >= Simd::avx2) return avx2::turn(pixels, count, shift);
#endif
    turn_pixels(pixels, count, shift);
}

}  // namespace fastfeed
