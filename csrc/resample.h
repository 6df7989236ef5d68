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

enum class Filter : int64_t { lanczos = 1, bilinear = 2, bicubic = 3 };  // Pillow's numbers

// Where a part of an image begins, in pixels, and the size of the whole image.
struct Part {
    int64_t top, left, whole_height, whole_width;
};

struct ResampleImage {
    const uint8_t* pixels;  // [height, width, 3], the bytes of a row without gaps
    int64_t height;
    int64_t width;
    int64_t stride;                    // from row to row, in bytes
    double top, left, bottom, right;  // what to resize, in pixels of the whole image; Pillow rounds it to floats
    Filter filter;
    Part input;   // of the pixels in memory: they are those of the whole image that the output needs
    Part output;  // of the output: a crop of what the whole image is resized to
};

struct ResampleArgs {
    std::vector<ResampleImage> images;
    uint8_t* dst;  // [images, out_h, out_w, 3]
    int64_t out_h;
    int64_t out_w;
};

// Sides of what is in memory, in pixels. Sums of weighted bytes fit into 32 bits up to here: see resample.cpp.
constexpr int64_t MAX_SIDE = 1 << 20;
// Of whole images: the number of a pixel that lies a filter's reach beyond the edge fits into 32 bits. And of what they
// are resized to: doubles hold the middle of every pixel.
constexpr int64_t MAX_WHOLE_SIDE = int64_t{1} << 28, MAX_RESIZED_SIDE = int64_t{1} << 48;

// The resizing as pieces of work for a pool: call piece(i) for every i in [0, pieces).
struct ResampleWork {
    int64_t pieces;
    std::function<void(int64_t)> piece;
};

// Images are cut into pieces where there are too few of them for `threads` threads. Pixels are read when a piece is
// done. Throws std::invalid_argument, with the image's number, for a box that is empty or leaves the image, for sides
// outside [1, MAX_SIDE], for rows that overlap, for parts that leave their wholes, for pixels that are needed and not in
// memory, and for another filter.
ResampleWork resample_work(ResampleArgs args, int threads);

}  // namespace fastfeed
