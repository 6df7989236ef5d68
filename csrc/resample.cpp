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

// One side of a resizing: `outputs` pixels from [from, to) of `inputs` pixels, of which [at, at + present) are in memory.
struct Side {
    Side(double begin, double end, int64_t inputs_, int64_t outputs_, int64_t at_, int64_t present_, Filter filter)
        : inputs(inputs_), at(at_), present(present_), from(static_cast<float>(begin)) {
        const float extent = static_cast<float>(end) - static_cast<float>(begin);
        scale = static_cast<double>(extent) / static_cast<double>(outputs_);
        filter_scale = std::max(scale, 1.0);
        support = (filter == Filter::lanczos ? 3.0 : filter == Filter::bicubic ? 2.0 : 1.0) * filter_scale;
    }
    // Where output i comes from, and the inputs [first, last) that it is made of.
    double center(int64_t i) const { return from + (static_cast<double>(i) + 0.5) * scale; }
    int32_t first(double middle) const { return std::max(static_cast<int32_t>(middle - support + 0.5), 0); }
    int32_t last(double middle) const {
        return std::min(static_cast<int32_t>(middle + support + 0.5), static_cast<int32_t>(inputs));
    }
    // Whether outputs [begin, end) are made of what is in memory.
    bool suffices(int64_t begin, int64_t end) const {
        return first(center(begin)) >= at && last(center(end - 1)) <= at + present;
    }
    int64_t inputs, at, present;
    double from, scale, filter_scale, support;
};

inline Side vertical_side(const ResampleImage& a) {
    return {a.top, a.bottom, a.input.whole_height, a.output.whole_height, a.input.top, a.height, a.filter};
}

inline Side horizontal_side(const ResampleImage& a) {
    return {a.left, a.right, a.input.whole_width, a.output.whole_width, a.input.left, a.width, a.filter};
}

// What some outputs of a side are made of: weights[t * padded + i] of input first[i] + t, counted from the first one in
// memory, for t in [0, 4 * groups).
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
inline bool vertical_first(const ResampleImage& image) {
    const int64_t shorter = image.input.whole_height - image.output.whole_height;
    const int64_t narrower = image.input.whole_width - image.output.whole_width;
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

bool is_part(int64_t begin, int64_t size, int64_t whole, int64_t most) {
    return whole >= 1 && whole <= most && begin >= 0 && begin <= whole - size;
}

void check(const ResampleArgs& args) {
    std::ostringstream error;
    error.precision(std::numeric_limits<double>::max_digits10);
    if (!side_is_valid(args.out_h) || !side_is_valid(args.out_w)) {
        error << "resample: the output's size, " << args.out_h << " x " << args.out_w << ", is not in [1, " << MAX_SIDE
              << "]";
        throw std::invalid_argument(error.str());
    }
    for (size_t n = 0; n < args.images.size(); ++n) {
        const ResampleImage& a = args.images[n];
        const Part &input = a.input, &output = a.output;
        if (a.filter != Filter::lanczos && a.filter != Filter::bilinear && a.filter != Filter::bicubic) {
            error << "resample: image " << n << " has filter " << static_cast<int64_t>(a.filter)
                  << ", none of 1 (Lanczos), 2 (bilinear) and 3 (bicubic)";
        } else if (!side_is_valid(a.height) || !side_is_valid(a.width)) {
            error << "resample: image " << n << " has size " << a.height << " x " << a.width << ", not in [1, "
                  << MAX_SIDE << "]";
        } else if (a.height > 1 &&
                   (a.stride < 3 * a.width || a.stride > std::numeric_limits<int64_t>::max() / a.height)) {
            error << "resample: image " << n << " has rows of " << 3 * a.width << " bytes at a stride of " << a.stride;
        } else if (a.pixels == nullptr) {
            error << "resample: image " << n << " has no memory";
        } else if (!is_part(input.top, a.height, input.whole_height, MAX_WHOLE_SIDE) ||
                   !is_part(input.left, a.width, input.whole_width, MAX_WHOLE_SIDE)) {
            error << "resample: image " << n << ", " << a.height << " x " << a.width << " pixels from (" << input.top
                  << ", " << input.left << ") on, is no part of one of " << input.whole_height << " x "
                  << input.whole_width;
        } else if (!is_part(output.top, args.out_h, output.whole_height, MAX_RESIZED_SIDE) ||
                   !is_part(output.left, args.out_w, output.whole_width, MAX_RESIZED_SIDE)) {
            error << "resample: image " << n << " is resized to " << output.whole_height << " x " << output.whole_width
                  << ", of which the output, " << args.out_h << " x " << args.out_w << " pixels from (" << output.top
                  << ", " << output.left << ") on, is no part";
        } else if (!inside(a.top, a.bottom, input.whole_height) || !inside(a.left, a.right, input.whole_width)) {
            error << "resample: image " << n << " of size " << input.whole_height << " x " << input.whole_width
                  << " has no box (top, left, bottom, right) = (" << a.top << ", " << a.left << ", " << a.bottom
                  << ", " << a.right << "): it must lie inside, and have an extent";
        } else if (!vertical_side(a).suffices(output.top, output.top + args.out_h) ||
                   !horizontal_side(a).suffices(output.left, output.left + args.out_w)) {
            error << "resample: image " << n << ", " << a.height << " x " << a.width << " pixels from (" << input.top
                  << ", " << input.left << ") on, has not all pixels that its output needs";
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
