// Copies RGB images into places of larger ones, and fills what they leave free: a crop with padding.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

namespace fastfeed {

struct PlacedImage {
    const uint8_t* pixels;  // [height, width, 3], the bytes of a row without gaps
    int64_t height;
    int64_t width;
    int64_t stride;                                // from row to row, in bytes
    int64_t top, left, place_height, place_width;  // where in the output it goes, in pixels; it may be larger
};

struct PlaceArgs {
    std::vector<PlacedImage> images;
    uint8_t* dst;  // [images, out_h, out_w, 3]
    int64_t out_h;
    int64_t out_w;
    std::array<uint8_t, 3> fill;
};

// The copying as pieces of work for a pool: call piece(i) for every i in [0, pieces).
struct PlaceWork {
    int64_t pieces;
    std::function<void(int64_t)> piece;
};

// Of an image that is larger than its place the top left part is taken, and an image of a single pixel is repeated.
// Pixels are read when a piece is done. Throws std::invalid_argument, with the image's number, for a place that leaves
// the output, or is larger than the image, for sides outside [1, MAX_SIDE] and for rows that overlap.
PlaceWork place_work(PlaceArgs args);

}  // namespace fastfeed
