// The last pass's formula, written once more: pixel by pixel, rounding in doubles.
#pragma once

#include "finish_cpu.cpp"

namespace fastfeed {
namespace {

// The nearest number with `digits` binary digits after the point, ties to even; `lowest` is the smallest exponent of
// normal numbers. In doubles, which hold every step exactly.
inline uint32_t nearest(float value, int digits, int lowest) {
    const double magnitude = std::fabs(static_cast<double>(value));
    const uint32_t sign = std::signbit(value) ? 0x8000 : 0;
    const uint32_t infinity = static_cast<uint32_t>(2 - 2 * lowest + 1) << digits;
    if (magnitude == 0) return sign;
    if (std::isinf(value)) return sign | infinity;
    const int exponent = std::max(std::ilogb(magnitude), lowest);
    const double units = std::nearbyint(std::ldexp(magnitude, digits - exponent));
    const double bits = std::ldexp(exponent - lowest, digits) + units;  // a carry goes into the exponent
    return sign | static_cast<uint32_t>(std::min<double>(bits, infinity));
}

inline uint32_t rounded(float value, Output output) {
    switch (output) {
        case Output::float16: return nearest(value, 10, -14);
        case Output::bfloat16: return nearest(value, 7, -126);
        case Output::float32: break;
    }
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline bool inside(const Rectangle& r, int64_t y, int64_t x) {
    const int64_t row = y - r.top, column = x - r.left;
    return row >= 0 && row < r.height && column >= 0 && column < r.width;
}

// One word of Philox-4x32-10, as the paper's figure has it. (What a word becomes is tested in Python.)
inline uint32_t random_word(const uint32_t* key, uint32_t x, uint32_t y, int channel) {
    uint32_t l[2] = {x, 0}, r[2] = {y, 0};
    for (uint32_t round = 0; round < 10; ++round) {
        const uint64_t m[2] = {uint64_t{0xD2511F53} * l[0], uint64_t{0xCD9E8D57} * l[1]};
        l[0] = static_cast<uint32_t>(m[1] >> 32) ^ r[0] ^ (key[0] + round * 0x9E3779B9u);
        l[1] = static_cast<uint32_t>(m[0] >> 32) ^ r[1] ^ (key[1] + round * 0xBB67AE85u);
        r[0] = static_cast<uint32_t>(m[1]);
        r[1] = static_cast<uint32_t>(m[0]);
    }
    const uint32_t words[4] = {l[0], r[0], l[1], r[1]};
    return words[channel];
}

inline float sample_value(const FinishArgs& a, int64_t n, int64_t y, int64_t x, int c) {
    const SampleParameters none{0, 0, {0, 0}, {}, {}, 0, 1, {}};
    const SampleParameters& s = a.parameters == nullptr ? none : a.parameters[n];
    if (inside(s.erase, y, x)) {
        return s.noise == 0 ? a.fill[c]
                            : standard_normal(random_word(s.noise_key, static_cast<uint32_t>(x),
                                                          static_cast<uint32_t>(y), c));
    }
    const int64_t from_y = s.flip >= 2 ? a.h - 1 - y : y, from_x = s.flip % 2 == 1 ? a.w - 1 - x : x;
    const uint8_t byte = a.src[n * a.stride_n + from_y * a.stride_h + from_x * a.stride_w + c * a.stride_c];
    const float value = a.normalizer.factor != 0 ? static_cast<float>(byte) * a.normalizer.factor
                                                 : static_cast<float>(byte) / 255.0f;
    return (value - a.normalizer.channel[c].mean) / a.normalizer.channel[c].std;
}

inline float finished_value(const FinishArgs& a, int64_t n, int64_t y, int64_t x, int c) {
    const float own = sample_value(a, n, y, x, c);
    if (a.parameters == nullptr) return own;
    const SampleParameters& s = a.parameters[n];
    if (inside(s.cut, y, x)) return sample_value(a, s.partner, y, x, c);
    if (s.weight == 1) return own;
    return own * s.weight + sample_value(a, s.partner, y, x, c) * (1 - s.weight);
}

inline int64_t output_size(const FinishArgs& a) { return a.output == Output::float32 ? 4 : 2; }
inline int64_t output_bytes(const FinishArgs& a) { return a.n * a.h * a.w * a.c * output_size(a); }

inline std::vector<uint8_t> expected_bytes(const FinishArgs& a) {
    std::vector<uint8_t> bytes(output_bytes(a));
    for (int64_t n = 0; n < a.n; ++n) {
        for (int64_t y = 0; y < a.h; ++y) {
            for (int64_t x = 0; x < a.w; ++x) {
                for (int c = 0; c < a.c; ++c) {
                    const uint32_t bits = rounded(finished_value(a, n, y, x, c), a.output);
                    const int64_t i = a.channels_last ? ((n * a.h + y) * a.w + x) * a.c + c
                                                      : ((n * a.c + c) * a.h + y) * a.w + x;
                    std::memcpy(&bytes[i * output_size(a)], &bits, output_size(a));  // little-endian
                }
            }
        }
    }
    return bytes;
}

}  // namespace
}  // namespace fastfeed
