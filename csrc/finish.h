// The last pass: uint8 images -> flip, normalise, erase, mix with a partner, round -> NHWC or NCHW.
//
// What happens to a pixel stands here once, for the processor and the GPU, in IEEE operations whose order is fixed:
// every multiply-add is either one fmaf or two roundings, never the compiler's choice (the build says
// -ffp-contract=off and -fmad=false too). So both give the same bits, those of the eager PyTorch formulas.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "philox.h"

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#endif

namespace fastfeed {

// (byte / 255 - mean) / std for one channel: as it stands, and without divisions. There everything is 256 times as
// large, which changes no rounding, because 256 / 255 of a byte, its level, is the byte and a little more: one fmaf.
// And 1 / (256 std) in two parts, the second the rounding error of the first, takes a multiplication and an fmaf.
// Where the result is rounded to 16 bits anyway, one fmaf, byte * scale + offset, is mostly good enough. With a factor,
// for (byte * factor - mean) / std, a byte's level is the product as it is.
struct Channel {
    float mean, std;
    float level_mean, inverse, inverse_error;
    float scale, offset;
};

struct Normalizer {
    Channel channel[4];
    int channels;
    bool fused;      // the form without divisions gives the same bits for all 256 bytes of every channel
    bool single[3];  // one fmaf does, once it is rounded to this Output; never for float32
    bool normal;     // every value is 0 or lies far from the subnormal numbers and from infinity: in [2^-60, 2^60]
    float factor;    // what bytes are multiplied by, if not 0, and not divided by 255; then nothing is `single`
};

// Nearly every mean and std are `fused`; for the others some quotient lies within 2^-48 of a tie. Of random ones 99 in
// 100 are `single` for bfloat16 and 9 in 10 for float16; those in use are for both.
Normalizer make_normalizer(const float* mean, const float* std, int channels, float factor = 0);

// What happens to one sample. Rectangles are in pixels of the output, and may reach over its edges.
struct Rectangle {
    int32_t top, left, height, width;
    FASTFEED_HD bool has_row(int64_t y) const { return y >= top && y < static_cast<int64_t>(top) + height; }
    FASTFEED_HD bool has_column(int64_t x) const { return x >= left && x < static_cast<int64_t>(left) + width; }
};

struct SampleParameters {  // 64 bytes; fastfeed/data/finish.py has the same layout as a NumPy dtype
    int32_t flip;          // 1: left to right, 2: top to bottom, 3: both
    int32_t noise;         // non-zero: the erased pixels become noise, else FinishArgs::fill
    uint32_t noise_key[2];
    Rectangle erase;
    Rectangle cut;    // these pixels are the partner's
    int32_t partner;  // the sample it is mixed with, in [0, N); flipped and erased by its own parameters
    float weight;     // of the sample itself, outside `cut`; 1 leaves the partner out
    int32_t reserved[2];
};
static_assert(sizeof(SampleParameters) == 64, "fastfeed/data/finish.py relies on it");

enum class Output : int { float32 = 0, float16 = 1, bfloat16 = 2 };

struct FinishArgs {
    const uint8_t* src;                              // [N, H, W, C]
    int64_t stride_n, stride_h, stride_w, stride_c;  // of src, in bytes
    void* dst;                                       // N * H * W * C values
    const SampleParameters* parameters;              // [N], or nullptr: every sample as it is
    int64_t n, h, w;
    int c;  // 1, 3 or 4
    Output output;
    bool channels_last;  // dst is [N, H, W, C], else [N, C, H, W]
    Normalizer normalizer;
    float fill[4];  // what erased pixels become, per channel

    FASTFEED_HD SampleParameters sample(int64_t i) const {
        if (parameters != nullptr) {
#ifdef __CUDA_ARCH__
            // Four loads and not one for every field.
            union {
                uint4 quarter[4];
                SampleParameters whole;
            } u;
            for (int k = 0; k < 4; ++k) u.quarter[k] = __ldg(reinterpret_cast<const uint4*>(parameters + i) + k);
            return u.whole;
#else
            return parameters[i];
#endif
        }
        SampleParameters none{};
        none.weight = 1.0f;
        none.partner = static_cast<int32_t>(i);
        return none;
    }
};

// ------------------------------------------------------------------------------------------ one value

FASTFEED_HD float level(float byte) { return fmaf(byte, 0x1.010102p-8f, byte); }  // 0x1.010102p-8 is 1 / 255

FASTFEED_HD float normalize_fused(float level, float level_mean, float inverse, float inverse_error) {
    const float centred = level - level_mean;
    return fmaf(centred, inverse, centred * inverse_error);
}

FASTFEED_HD float normalize(float byte, float mean, float std) { return (byte / 255.0f - mean) / std; }

FASTFEED_HD float normalize_multiplied(float byte, float factor, float mean, float std) {
    return (byte * factor - mean) / std;
}

FASTFEED_HD float blend(float own, float partner, float weight) {
#ifdef __CUDA_ARCH__
    return __fadd_rn(__fmul_rn(own, weight), __fmul_rn(partner, 1.0f - weight));
#else
    return own * weight + partner * (1.0f - weight);
#endif
}

FASTFEED_HD float bits_to_float(uint32_t bits) {
#ifdef __CUDA_ARCH__
    return __uint_as_float(bits);
#else
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
#endif
}

FASTFEED_HD uint32_t float_to_bits(float value) {
#ifdef __CUDA_ARCH__
    return __float_as_uint(value);
#else
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
#endif
}

// The output types, by how a float is rounded to them (to nearest, ties to even). No value is NaN: mean, std, fill
// and weight are checked before they come here.
struct Float32 {
    using Bits = uint32_t;
    static FASTFEED_HD Bits round(float value) { return float_to_bits(value); }
};

struct BFloat16 {
    using Bits = uint16_t;
    static FASTFEED_HD Bits round(float value) {
#ifdef __CUDA_ARCH__
        return __bfloat16_as_ushort(__float2bfloat16_rn(value));
#else
        return static_cast<Bits>(rounded_above(value) >> 16);
#endif
    }
    // The result is the upper half.
    static FASTFEED_HD uint32_t rounded_above(float value) {
        const uint32_t bits = float_to_bits(value);
        return bits + 0x7fff + (bits >> 16 & 1);
    }
};

struct Float16 {
    using Bits = uint16_t;
    static FASTFEED_HD Bits round(float value) {
#ifdef __CUDA_ARCH__
        return __half_as_ushort(__float2half_rn(value));
#else
        // Written without branches, for the vectoriser: three candidates and two choices.
        const uint32_t bits = float_to_bits(value), sign = bits >> 16 & 0x8000, magnitude = bits & 0x7fffffff;
        // Exponents are 15 against 127; the carry of the rounding may go into them, which is right.
        const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
        // Below 2^-14 values are multiples of 2^-24, which are the last bits of numbers near 0.5.
        const uint32_t subnormal = float_to_bits(bits_to_float(magnitude) + 0.5f) - float_to_bits(0.5f);
        uint32_t result = magnitude < 113u << 23 ? subnormal : normal;
        result = magnitude >= 0x477ff000 ? 0x7c00 : result;  // 65520 and more become infinite
        return static_cast<Bits>(sign | result);
#endif
    }
};

// ------------------------------------------------------------------------------------------------ noise

// The natural logarithm of a positive normal number: the argument is split into 2^e * m with m around 1, and the
// series around 1 is Cephes' (S. Moshier). Within 1e-7, relative to the result or to 1.
FASTFEED_HD float logarithm(float value) {
    const uint32_t bits = float_to_bits(value) - 0x3f3504f3;  // m lies in [sqrt(1/2), sqrt(2))
    const float e = static_cast<float>(static_cast<int32_t>(bits) >> 23);
    const float z = bits_to_float((bits & 0x007fffff) + 0x3f3504f3) - 1.0f;
    float p = 7.0376836292e-2f;
    p = fmaf(p, z, -1.1514610310e-1f);
    p = fmaf(p, z, 1.1676998740e-1f);
    p = fmaf(p, z, -1.2420140846e-1f);
    p = fmaf(p, z, 1.4249322787e-1f);
    p = fmaf(p, z, -1.6668057665e-1f);
    p = fmaf(p, z, 2.0000714765e-1f);
    p = fmaf(p, z, -2.4999993993e-1f);
    p = fmaf(p, z, 3.3333331174e-1f);
    const float z2 = z * z;
    p = fmaf(p * z, z2, -0.5f * z2);
    return fmaf(e, 0.693147180559945f, z + p);
}

// A standard normal number from a random word, by inversion: sqrt(2) * erfinv(x) with x uniform in (-1, 1).
// Source of the polynomials: M. Giles, "Approximating the erfinv function", GPU Computing Gems, 2010.
FASTFEED_HD float standard_normal(uint32_t word) {
    // Odd multiples of 2^-24: symmetric, exact, and never -1, 0 or 1.
    const float x = static_cast<float>(static_cast<int32_t>(2 * (word >> 8) + 1) - (1 << 24)) * 0x1p-24f;
    const float w = -logarithm((1.0f - x) * (1.0f + x));
    // Both polynomials for every word, and then the right one: a branch would keep compilers from making vectors.
    const float near = w - 2.5f, far = sqrtf(w > 0.0f ? w : 0.0f) - 3.0f;
    float p = 2.81022636e-08f;
    p = fmaf(p, near, 3.43273939e-07f);
    p = fmaf(p, near, -3.5233877e-06f);
    p = fmaf(p, near, -4.39150654e-06f);
    p = fmaf(p, near, 0.00021858087f);
    p = fmaf(p, near, -0.00125372503f);
    p = fmaf(p, near, -0.00417768164f);
    p = fmaf(p, near, 0.246640727f);
    p = fmaf(p, near, 1.50140941f);
    float q = -0.000200214257f;
    q = fmaf(q, far, 0.000100950558f);
    q = fmaf(q, far, 0.00134934322f);
    q = fmaf(q, far, -0.00367342844f);
    q = fmaf(q, far, 0.00573950773f);
    q = fmaf(q, far, -0.0076224613f);
    q = fmaf(q, far, 0.00943887047f);
    q = fmaf(q, far, 1.00167406f);
    q = fmaf(q, far, 2.83297682f);
    return 1.41421356f * ((w < 5.0f ? p : q) * x);
}

FASTFEED_HD Words noise_words(const SampleParameters& s, int64_t y, int64_t x) {
    return philox(s.noise_key[0], s.noise_key[1], {{static_cast<uint32_t>(x), static_cast<uint32_t>(y), 0, 0}});
}

// What pixel (y, x) of an erased sample becomes: up to four channels from one call of the generator.
template <int C>
FASTFEED_HD void erased_pixel(const FinishArgs& a, const SampleParameters& s, int64_t y, int64_t x, float* pixel) {
    if (s.noise == 0) {
        for (int c = 0; c < C; ++c) pixel[c] = a.fill[c];
        return;
    }
    const Words words = noise_words(s, y, x);
    for (int c = 0; c < C; ++c) pixel[c] = standard_normal(words.word[c]);
}

#ifdef FASTFEED_CUDA
// On the current device, where `args.parameters` is too; `stream` is a cudaStream_t. Returns nullptr, or what CUDA says
// is wrong.
const char* finish_cuda(const FinishArgs& args, void* stream);
#endif

}  // namespace fastfeed
