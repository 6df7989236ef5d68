#include "resample.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "buffer.h"
#include "simd.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace fastfeed {

namespace {

// Weights are whole numbers of 2^-22. The sum of their absolute values is below 1.6 (Lanczos at an image's edge), and
// rounding adds at most half a unit for each of up to MAX_SIDE pixels: 255 times that stays below 2^31.
constexpr int PRECISION = 22;

// Outputs are worked on in chunks, and arrays of them are padded to whole chunks.
constexpr int CHUNK = 16;

// The pixels that a vector instruction may read past the end of a row.
constexpr int64_t SLACK = 64;

// One side of a resizing: `outputs` pixels from [from, to) of `inputs` pixels.
struct Side {
    Side(double begin, double end, int64_t inputs_, int64_t outputs_, Filter filter)
        : inputs(inputs_), outputs(outputs_), from(static_cast<float>(begin)) {
        const float extent = static_cast<float>(end) - static_cast<float>(begin);
        scale = static_cast<double>(extent) / static_cast<double>(outputs);
        filter_scale = std::max(scale, 1.0);
        support = (filter == Filter::lanczos ? 3.0 : filter == Filter::bicubic ? 2.0 : 1.0) * filter_scale;
    }
    int64_t inputs, outputs;
    double from, scale, filter_scale, support;
};

// What some outputs of a side are made of: weights[t * padded + i] of input first[i] + t, for t in [0, 4 * groups).
// They are zero from the last input of an output on, and for outputs in the padding. `first` and `count` may be read a
// chunk further than that.
struct Taps {
    Taps(int64_t outputs, int64_t max_taps)
        : padded((outputs + CHUNK - 1) / CHUNK * CHUNK), groups((max_taps + 3) / 4), first(padded + CHUNK),
          count(padded + CHUNK), weights(padded * 4 * groups) {}
    int64_t padded, groups;
    Buffer<int32_t> first, count, weights;
};

// Whether the vertical pass comes first: the rule of Pillow 13, by the size of the whole image. The order shows in the
// last bits, since there are bytes between the passes.
inline bool vertical_first(const ResampleImage& image, const ResampleArgs& args) {
    const int64_t shorter = image.height - args.out_h, narrower = image.width - args.out_w;
    return shorter > 0 && shorter > 2 * narrower;
}

#define FASTFEED_INLINE inline __attribute__((always_inline))

namespace baseline {
#include "resample_baseline.h"
#include "resample_rows.h"
}  // namespace baseline

#if defined(__x86_64__)
#ifdef __clang__
#pragma clang attribute push(__attribute__((target("avx2"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2")
#endif
namespace avx2 {
#include "resample_avx2.h"
#include "resample_rows.h"
}  // namespace avx2
#ifdef __clang__
#pragma clang attribute pop
#pragma clang attribute push(__attribute__((target("avx2,avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,prefer-vector-width=512")
#endif
// GCC 12 takes the "undefined" vectors of its own intrinsics for variables that somebody forgot to set.
#ifndef __clang__
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
namespace avx512_vnni {
#include "resample_avx512.h"
#include "resample_rows.h"
}  // namespace avx512_vnni
#ifndef __clang__
#pragma GCC diagnostic pop
#endif
#ifdef __clang__
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

using Rows = void (*)(const ResampleArgs&, int64_t, int64_t, int64_t);

Rows choose_rows() {
#if defined(__x86_64__)
    switch (simd()) {
        case Simd::avx512_bf16:
        case Simd::avx512_vnni: return avx512_vnni::resample_rows;
        case Simd::avx512:
        case Simd::avx2: return avx2::resample_rows;
        case Simd::baseline: break;
    }
#endif
    return baseline::resample_rows;
}

bool side_is_valid(int64_t side) { return side >= 1 && side <= MAX_SIDE; }

// Also false for what is no number.
bool inside(double begin, double end, int64_t side) {
    return begin >= 0 && end <= static_cast<double>(side) &&
           static_cast<float>(end) - static_cast<float>(begin) > 0.0f;
}

void check(const ResampleArgs& args) {
    std::ostringstream error;
    error.precision(std::numeric_limits<double>::max_digits10);
    if (args.filter != Filter::lanczos && args.filter != Filter::bilinear && args.filter != Filter::bicubic) {
        error << "resample: filter " << static_cast<int>(args.filter) << " is none of 1 (Lanczos), 2 (bilinear) and 3 "
              << "(bicubic)";
        throw std::invalid_argument(error.str());
    }
    if (!side_is_valid(args.out_h) || !side_is_valid(args.out_w)) {
        error << "resample: the output's size, " << args.out_h << " x " << args.out_w << ", is not in [1, " << MAX_SIDE
              << "]";
        throw std::invalid_argument(error.str());
    }
    for (size_t n = 0; n < args.images.size(); ++n) {
        const ResampleImage& a = args.images[n];
        if (!side_is_valid(a.height) || !side_is_valid(a.width)) {
            error << "resample: image " << n << " has size " << a.height << " x " << a.width << ", not in [1, "
                  << MAX_SIDE << "]";
        } else if (a.height > 1 &&
                   (a.stride < 3 * a.width || a.stride > std::numeric_limits<int64_t>::max() / a.height)) {
            error << "resample: image " << n << " has rows of " << 3 * a.width << " bytes at a stride of " << a.stride;
        } else if (a.pixels == nullptr) {
            error << "resample: image " << n << " has no memory";
        } else if (!inside(a.top, a.bottom, a.height) || !inside(a.left, a.right, a.width)) {
            error << "resample: image " << n << " of size " << a.height << " x " << a.width
                  << " has no box (top, left, bottom, right) = (" << a.top << ", " << a.left << ", " << a.bottom
                  << ", " << a.right << "): it must lie inside, and have an extent";
        } else {
            continue;
        }
        throw std::invalid_argument(error.str());
    }
}

}  // namespace

ResampleWork resample_work(ResampleArgs args, int threads) {
    check(args);
    const int64_t images = static_cast<int64_t>(args.images.size());
    if (images == 0) return {0, nullptr};
    // Two pieces per thread share the work evenly enough. Each begins with weights for a whole row: not below 32 rows.
    const int64_t wanted = (2 * int64_t{threads} + images - 1) / images;
    const int64_t cuts = std::clamp<int64_t>(wanted, 1, std::max<int64_t>(1, args.out_h / 32));
    const auto shared = std::make_shared<const ResampleArgs>(std::move(args));
    return {images * cuts, [shared, cuts, rows = choose_rows()](int64_t i) {
                const int64_t cut = i % cuts, h = shared->out_h;
                rows(*shared, i / cuts, h * cut / cuts, h * (cut + 1) / cuts);
            }};
}

}  // namespace fastfeed
