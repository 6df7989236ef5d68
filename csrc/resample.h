// Antialiased resizing of RGB images on the processor: bit for bit what Pillow's Image.resize makes of them.
//
// Two passes, one horizontal and one vertical, with bytes between them, make every pixel a weighted mean of those
// around the place that it comes from. Where the image shrinks, the filter is wider by as much. Weights are computed
// in doubles, and become whole numbers of 2^-22. As in Pillow 13, the horizontal pass comes first unless the height
// shrinks by more than twice as many pixels as the width; in earlier versions it always does.
#pragma once

#include <cstdint>
#include <vector>

#include "pool.h"

namespace fastfeed {

enum class Filter { lanczos = 1, bilinear = 2, bicubic = 3 };  // Pillow's numbers

struct ResampleImage {
    const uint8_t* pixels;  // [height, width, 3], the bytes of a row without gaps
    int64_t height;
    int64_t width;
    int64_t stride;                    // from row to row, in bytes
    double top, left, bottom, right;  // the part to resize, in pixels; Pillow rounds it to floats
};

struct ResampleArgs {
    std::vector<ResampleImage> images;
    uint8_t* dst;  // [images, out_h, out_w, 3]
    int64_t out_h;
    int64_t out_w;
    Filter filter;
};

// Sides of images and of the output, in pixels. Sums of weighted bytes fit into 32 bits up to here: see resample.cpp.
constexpr int64_t MAX_SIDE = 1 << 20;

// The resizing as pieces of work for a pool: call piece(i) for every i in [0, pieces).
struct ResampleWork {
    int64_t pieces;
    std::function<void(int64_t)> piece;
};

// Images are cut into pieces where there are too few of them for `threads` threads. Pixels are read when a piece is
// done. Throws std::invalid_argument, with the image's number, for a box that is empty or leaves the image, for sides
// outside [1, MAX_SIDE] and for rows that overlap.
ResampleWork resample_work(ResampleArgs args, int threads);

}  // namespace fastfeed
