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
    normalizer.fused = true;
    for (int c = 0; c < channels; ++c) {
        const double exact = 1 / (256.0 * static_cast<double>(std[c]));
        const float inverse = static_cast<float>(exact), inverse_error = static_cast<float>(exact - inverse);
        normalizer.channel[c] = {mean[c], std[c], 256 * mean[c], inverse, inverse_error};
        for (int byte = 0; byte < 256; ++byte) {
            const float level = static_cast<float>(byte);
            normalizer.fused &= float_to_bits(normalize_fused(level, 256 * mean[c], inverse, inverse_error)) ==
                                float_to_bits(normalize(level, mean[c], std[c]));
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

    explicit Lanes(const Normalizer& normalizer) {
        for (int i = 0; i < BLOCK; ++i) {
            const Channel& channel = normalizer.channel[i % normalizer.channels];
            mean[i] = channel.mean;
            std[i] = channel.std;
            mean_256[i] = channel.mean_256;
            inverse[i] = channel.inverse;
            inverse_error[i] = channel.inverse_error;
        }
    }
};

using Rows = void (*)(const FinishArgs&, const Lanes&, int64_t, int64_t);

// Without a fused multiply-add instruction, which not every x86-64 has, the divisions are faster than calls of fmaf.
#if defined(__FMA__) || defined(__aarch64__)
constexpr bool BASELINE_FUSED = true;
#else
constexpr bool BASELINE_FUSED = false;
#endif

#define FASTFEED_INLINE inline __attribute__((always_inline))

namespace baseline {
#include "finish_rows.h"
}  // namespace baseline

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#define FASTFEED_AVX2
namespace avx2 {
#include "finish_rows.h"
}  // namespace avx2
#undef FASTFEED_AVX2
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,prefer-vector-width=512")
#define FASTFEED_AVX512
// GCC 12 takes the "undefined" vectors of its own intrinsics for variables that somebody forgot to set.
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
namespace avx512 {
#include "finish_rows.h"
}  // namespace avx512
#pragma GCC diagnostic pop
#undef FASTFEED_AVX512
#pragma GCC pop_options

enum class Simd { baseline, avx2, avx512 };

Simd simd() {
    const bool avx2 =
        __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
                        __builtin_cpu_supports("avx512dq");
    return avx512 ? Simd::avx512 : avx2 ? Simd::avx2 : Simd::baseline;
}
#endif

// The function for the output type and channels of `a`, from a namespace above.
#define FASTFEED_ROWS(TARGET, FUSED)                                                       \
    switch (a.output) {                                                                    \
        case Output::float32: return FASTFEED_ROWS_OF(TARGET, Float32, FUSED);             \
        case Output::float16: return FASTFEED_ROWS_OF(TARGET, Float16, FUSED);             \
        case Output::bfloat16: return FASTFEED_ROWS_OF(TARGET, BFloat16, FUSED);           \
    }                                                                                      \
    break
#define FASTFEED_ROWS_OF(TARGET, T, FUSED)                                                 \
    (a.c == 1   ? TARGET::write_rows<T, 1, FUSED>                                          \
     : a.c == 3 ? TARGET::write_rows<T, 3, FUSED>                                          \
                : TARGET::write_rows<T, 4, FUSED>)

Rows choose_rows(const FinishArgs& a) {
    if (a.c != 1 && a.c != 3 && a.c != 4) throw std::invalid_argument("finish: not 1, 3 or 4 channels");
#if defined(__x86_64__)
    if (a.normalizer.fused) {
        switch (simd()) {
            case Simd::avx512: FASTFEED_ROWS(avx512, true);
            case Simd::avx2: FASTFEED_ROWS(avx2, true);
            case Simd::baseline: break;
        }
    }
#endif
    switch (BASELINE_FUSED && a.normalizer.fused) {
        case true: FASTFEED_ROWS(baseline, BASELINE_FUSED);
        case false: FASTFEED_ROWS(baseline, false);
    }
    throw std::invalid_argument("finish: unknown output type");
}

#undef FASTFEED_ROWS
#undef FASTFEED_ROWS_OF

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
