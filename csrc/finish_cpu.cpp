#include "finish_cpu.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastfeed {

Normalizer make_normalizer(const float* mean, const float* std, int channels) {
    Normalizer normalizer{};
    normalizer.channels = channels;
    normalizer.fused = normalizer.single[1] = normalizer.single[2] = true;
    for (int c = 0; c < channels; ++c) {
        const double exact = 1 / (256.0 * static_cast<double>(std[c]));
        const float inverse = static_cast<float>(exact), inverse_error = static_cast<float>(exact - inverse);
        const float scale = static_cast<float>(256 * exact / 255);
        const float offset = static_cast<float>(-static_cast<double>(mean[c]) / static_cast<double>(std[c]));
        normalizer.channel[c] = {mean[c], std[c], 256 * mean[c], inverse, inverse_error, scale, offset};
        for (int byte = 0; byte < 256; ++byte) {
            const float level = static_cast<float>(byte), value = normalize(level, mean[c], std[c]);
            const float fused = normalize_fused(level, 256 * mean[c], inverse, inverse_error);
            const float single = fmaf(level, scale, offset);
            normalizer.fused &= float_to_bits(fused) == float_to_bits(value);
            normalizer.single[1] &= Float16::round(single) == Float16::round(value);
            normalizer.single[2] &= BFloat16::round(single) == BFloat16::round(value);
        }
    }
    return normalizer;
}

namespace {

// A row is worked on in blocks of 96 values: whole pixels for 1, 3 and 4 channels, and pairs of vectors of any width.
constexpr int BLOCK = 96;

// The constants of a block's values, channel after channel.
struct Lanes {
    alignas(64) float mean[BLOCK];
    alignas(64) float std[BLOCK];
    alignas(64) float mean_256[BLOCK];
    alignas(64) float inverse[BLOCK];
    alignas(64) float inverse_error[BLOCK];
    alignas(64) float scale[BLOCK];
    alignas(64) float offset[BLOCK];

    explicit Lanes(const Normalizer& normalizer) {
        for (int i = 0; i < BLOCK; ++i) {
            const Channel& channel = normalizer.channel[i % normalizer.channels];
            mean[i] = channel.mean;
            std[i] = channel.std;
            mean_256[i] = channel.mean_256;
            inverse[i] = channel.inverse;
            inverse_error[i] = channel.inverse_error;
            scale[i] = channel.scale;
            offset[i] = channel.offset;
        }
    }
};

// How a byte becomes a value: see Channel. `single` is for values that are rounded to 16 bits at once; those that are
// mixed first are made by `fused`.
enum class Form { divide, fused, single };

constexpr Form before_mixing(Form form) { return form == Form::single ? Form::fused : form; }

using Rows = void (*)(const FinishArgs&, const Lanes&, int64_t, int64_t);

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
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#undef FASTFEED_AVX512
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

enum class Simd { baseline, avx2, avx512 };

Simd simd() {
    __builtin_cpu_init();
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    return avx512 ? Simd::avx512 : avx2 ? Simd::avx2 : Simd::baseline;
}
#endif

Rows choose_rows(const FinishArgs& a) {
    const int output = static_cast<int>(a.output);
    if (a.c != 1 && a.c != 3 && a.c != 4) throw std::invalid_argument("finish: not 1, 3 or 4 channels");
    if (output < 0 || output > 2) throw std::invalid_argument("finish: unknown output type");
    const Form form = !a.normalizer.fused            ? Form::divide
                      : a.normalizer.single[output] ? Form::single
                                                    : Form::fused;
#if defined(__x86_64__)
    switch (simd()) {
        case Simd::avx512: return avx512::rows_for(a, form);
        case Simd::avx2: return avx2::rows_for(a, form);
        case Simd::baseline: break;
    }
#endif
#if defined(__FMA__) || defined(__aarch64__)
    return baseline::rows_for(a, form);
#else
    return baseline::rows_for(a, Form::divide);  // faster than calls of fmaf, where it is no instruction
#endif
}

}  // namespace

FinishWork finish_work(const FinishArgs& args) {
    const Rows rows = choose_rows(args);
    const int64_t total = args.w == 0 ? 0 : args.n * args.h;
    // About 40 KB of pixels a piece: long enough to hide the cost of taking it, short enough to share evenly.
    const int64_t grain = std::max<int64_t>(1, 40000 / std::max<int64_t>(1, args.w * args.c));
    return {(total + grain - 1) / grain, [args, rows, total, grain, lanes = Lanes(args.normalizer)](int64_t i) {
                rows(args, lanes, i * grain, std::min(total, (i + 1) * grain));
            }};
}

const char* finish_simd() {
#if defined(__x86_64__)
    switch (simd()) {
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
