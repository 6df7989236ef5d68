#include "finish_cpu.h"

#include <algorithm>
#include <stdexcept>
#include <type_traits>

#include "buffer.h"
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastfeed {

// Levels of this many times the size: see widen_to_levels.
static constexpr float WIDE = 0x1p24f;

Normalizer make_normalizer(const float* mean, const float* std, int channels, float factor) {
    Normalizer normalizer{};
    normalizer.channels = channels;
    normalizer.factor = factor;
    normalizer.normal = true;
    normalizer.fused = true;
    normalizer.single[1] = normalizer.single[2] = factor == 0;
    const float unit = factor == 0 ? 256 : 1;
    const auto is_normal = [](float value) {
        return value == 0 || (std::fabs(value) >= 0x1p-60f && std::fabs(value) <= 0x1p60f);
    };
    for (int c = 0; c < channels; ++c) {
        const double reciprocal = 1 / static_cast<double>(std[c]), exact = reciprocal / unit;
        const float inverse = static_cast<float>(exact), inverse_error = static_cast<float>(exact - inverse);
        const float scale = static_cast<float>(factor == 0 ? reciprocal / 255 : reciprocal * factor);
        const float offset = static_cast<float>(-static_cast<double>(mean[c]) * reciprocal);
        normalizer.channel[c] = {mean[c], std[c], unit * mean[c], inverse, inverse_error, scale, offset};
        for (int byte = 0; byte < 256; ++byte) {
            const float in = static_cast<float>(byte);
            const float value = factor == 0 ? normalize(in, mean[c], std[c])
                                            : normalize_multiplied(in, factor, mean[c], std[c]);
            const float in_levels = factor == 0 ? level(in) : in * factor;
            const float fused = normalize_fused(in_levels, unit * mean[c], inverse, inverse_error);
            const float wide = normalize_fused(WIDE * in_levels, WIDE * (unit * mean[c]),
                                               inverse / WIDE, inverse_error / WIDE);
            const float single = fmaf(in, scale, offset);
            normalizer.normal &= is_normal(value) && is_normal(single);
            normalizer.fused &= float_to_bits(fused) == float_to_bits(value);
            normalizer.fused &= float_to_bits(wide) == float_to_bits(value);
            normalizer.single[1] &= Float16::round(single) == Float16::round(value);
            normalizer.single[2] &= BFloat16::round(single) == BFloat16::round(value);
        }
    }
    return normalizer;
}

namespace {

// A row is worked on in blocks of 96 values: whole pixels for 1, 3 and 4 channels, and pairs of vectors of any width.
// Half a block is whole pixels and vectors too, and has the same constants as the other half.
constexpr int BLOCK = 96, PERIOD = 48;

// Outputs of so many bytes are written past the caches, where the processor has instructions for whole lines: else they
// are read into them first, and drive out what other threads work on. Smaller ones may still be there for their reader.
constexpr int64_t STREAMED = int64_t{8} << 20;

// The constants of the values, channel after channel.
struct Lanes {
    alignas(64) float mean[PERIOD];
    alignas(64) float std[PERIOD];
    alignas(64) float level_mean[PERIOD];
    alignas(64) float inverse[PERIOD];
    alignas(64) float inverse_error[PERIOD];
    alignas(64) float scale[PERIOD];
    alignas(64) float offset[PERIOD];
    float factor;

    // For levels that are `wide` times as large.
    Lanes(const Normalizer& normalizer, float wide) : factor(normalizer.factor) {
        for (int i = 0; i < PERIOD; ++i) {
            const Channel& channel = normalizer.channel[i % normalizer.channels];
            mean[i] = channel.mean;
            std[i] = channel.std;
            level_mean[i] = channel.level_mean * wide;
            inverse[i] = channel.inverse / wide;
            inverse_error[i] = channel.inverse_error / wide;
            scale[i] = channel.scale;
            offset[i] = channel.offset;
        }
    }
};

// How a byte becomes a value: see Channel. `single` is for values that are rounded to 16 bits at once; those that are
// mixed first are made by `fused`.
enum class Form { divide, multiply, fused, single };

constexpr Form before_mixing(Form form) { return form == Form::single ? Form::fused : form; }

// Writes rows [begin, end); past the caches if `stream`, as far as it can.
using Rows = void (*)(const FinishArgs&, const Lanes&, bool stream, int64_t begin, int64_t end);

#define FASTFEED_INLINE inline __attribute__((always_inline))

namespace baseline {
#include "finish_rows.h"
}  // namespace baseline

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#endif
#define FASTFEED_AVX2
namespace avx2 {
#include "finish_rows.h"
}  // namespace avx2
#undef FASTFEED_AVX2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#endif
#define FASTFEED_AVX512
// GCC 12 takes the "undefined" vectors of its own intrinsics for variables that somebody forgot to set.
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
namespace avx512 {
#include "finish_rows.h"
}  // namespace avx512
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(                                                                               \
    __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512bf16"))), \
    apply_to = function)
#else
#pragma GCC target("avx512vbmi,avx512bf16")
#endif
#define FASTFEED_AVX512_BF16
namespace avx512_bf16 {
#include "finish_rows.h"
}  // namespace avx512_bf16
#undef FASTFEED_AVX512_BF16
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#undef FASTFEED_AVX512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

// AVX-512's conversion to bfloat16 takes subnormal numbers for zeros. No value is one if those to be mixed lie in
// [2^-60, 2^60], and their weights above 2^-30: a product is at least 2^-90, a difference of two at least 2^-114.
[[maybe_unused]] bool never_subnormal(const FinishArgs& a) {
    if (!a.normalizer.normal) return false;
    if (a.parameters == nullptr) return true;
    return std::all_of(a.parameters, a.parameters + a.n,
                       [](const SampleParameters& s) { return s.weight == 0 || s.weight >= 0x1p-30f; });
}

struct Choice {
    Rows rows;
    float wide;  // the levels that they work with
};

Choice choose_rows(const FinishArgs& a) {
    const int output = static_cast<int>(a.output);
    if (a.c != 1 && a.c != 3 && a.c != 4) throw std::invalid_argument("finish: not 1, 3 or 4 channels");
    if (output < 0 || output > 2) throw std::invalid_argument("finish: unknown output type");
    const Form form = a.normalizer.factor != 0       ? Form::multiply
                      : !a.normalizer.fused          ? Form::divide
                      : a.normalizer.single[output] ? Form::single
                                                    : Form::fused;
#if defined(__x86_64__)
    switch (simd()) {
        case Simd::avx512_bf16:
            if (never_subnormal(a)) return {avx512_bf16::rows_for(a, form), WIDE};
            [[fallthrough]];
        case Simd::avx512_vnni:
        case Simd::avx512: return {avx512::rows_for(a, form), WIDE};
        case Simd::avx2: return {avx2::rows_for(a, form), 1};
        case Simd::baseline: break;
    }
#endif
#if defined(__FMA__) || defined(__aarch64__)
    return {baseline::rows_for(a, form), 1};
#else
    const Form exact = a.normalizer.factor != 0 ? Form::multiply : Form::divide;
    return {baseline::rows_for(a, exact), 1};  // faster than calls of fmaf, where it is no instruction
#endif
}

}  // namespace

FinishWork finish_work(const FinishArgs& args) {
    const Choice choice = choose_rows(args);
    const int64_t total = args.w == 0 ? 0 : args.n * args.h;
    // About 40 KB of pixels a piece: long enough to hide the cost of taking it, short enough to share evenly.
    const int64_t grain = std::max<int64_t>(1, 40000 / std::max<int64_t>(1, args.w * args.c));
    const int64_t value_size = args.output == Output::float32 ? 4 : 2;
    const bool stream = total * args.w * args.c * value_size >= STREAMED;
    const Lanes lanes(args.normalizer, choice.wide);
    return {(total + grain - 1) / grain, [args, rows = choice.rows, lanes, stream, total, grain](int64_t i) {
                rows(args, lanes, stream, i * grain, std::min(total, (i + 1) * grain));
            }};
}

const char* finish_simd() {
#if defined(__x86_64__)
    switch (simd()) {
        case Simd::avx512_bf16: return "AVX-512 with BF16";
        case Simd::avx512_vnni:
        case Simd::avx512: return "AVX-512";
        case Simd::avx2: return "AVX2";
        case Simd::baseline: return "SSE2, the baseline of x86-64";
    }
#elif defined(__aarch64__)
    return "NEON";
#endif
    return "the compiler's default";
}

}  // namespace fastfeed
