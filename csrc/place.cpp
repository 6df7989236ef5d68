#include "place.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <memory>
#include <sstream>
#include <stdexcept>

#include "resample.h"  // MAX_SIDE

namespace fastfeed {
namespace {

// Writes a pixel again and again, up to `end`.
void repeat(const uint8_t* pixel, uint8_t* begin, const uint8_t* end) {
    if (begin == end) return;
    std::memcpy(begin, pixel, 3);
    // What is filled is copied behind itself, and so doubles.
    for (int64_t filled = 3, size = end - begin; filled < size; filled *= 2) {
        std::memcpy(begin + filled, begin, std::min(filled, size - filled));
    }
}

void place(const PlaceArgs& args, int64_t n) {
    const PlacedImage& image = args.images[n];
    const bool one_pixel = image.height == 1 && image.width == 1;
    uint8_t* const dst = args.dst + n * args.out_h * args.out_w * 3;
    uint8_t* free = dst;  // from here to the next row of the image: the end of one line, and the beginning of the next
    for (int64_t y = 0; y < image.place_height; ++y) {
        uint8_t* const row = dst + ((image.top + y) * args.out_w + image.left) * 3;
        uint8_t* const end = row + image.place_width * 3;
        repeat(args.fill.data(), free, row);
        if (one_pixel) {
            repeat(image.pixels, row, end);
        } else {
            std::memcpy(row, image.pixels + y * image.stride, end - row);
        }
        free = end;
    }
    repeat(args.fill.data(), free, dst + args.out_h * args.out_w * 3);
}

bool side_is_valid(int64_t side) { return side >= 1 && side <= MAX_SIDE; }

bool inside(int64_t begin, int64_t size, int64_t side) {
    return begin >= 0 && begin <= side && size >= 0 && size <= side - begin;
}

void check(const PlaceArgs& args) {
    std::ostringstream error;
    if (!side_is_valid(args.out_h) || !side_is_valid(args.out_w)) {
        error << "place: the output's size, " << args.out_h << " x " << args.out_w << ", is not in [1, " << MAX_SIDE
              << "]";
        throw std::invalid_argument(error.str());
    }
    for (size_t n = 0; n < args.images.size(); ++n) {
        const PlacedImage& a = args.images[n];
        const bool covers = (a.height >= a.place_height && a.width >= a.place_width) || (a.height == 1 && a.width == 1);
        if (!side_is_valid(a.height) || !side_is_valid(a.width)) {
            error << "place: image " << n << " has size " << a.height << " x " << a.width << ", not in [1, " << MAX_SIDE
                  << "]";
        } else if (a.height > 1 &&
                   (a.stride < 3 * a.width || a.stride > std::numeric_limits<int64_t>::max() / a.height)) {
            error << "place: image " << n << " has rows of " << 3 * a.width << " bytes at a stride of " << a.stride;
        } else if (a.pixels == nullptr) {
            error << "place: image " << n << " has no memory";
        } else if (!inside(a.top, a.place_height, args.out_h) || !inside(a.left, a.place_width, args.out_w)) {
            error << "place: image " << n << " goes to (top, left, height, width) = (" << a.top << ", " << a.left
                  << ", " << a.place_height << ", " << a.place_width << "), outside of the output's " << args.out_h
                  << " x " << args.out_w;
        } else if (!covers) {
            error << "place: image " << n << " of size " << a.height << " x " << a.width
                  << " is smaller than its place, " << a.place_height << " x " << a.place_width;
        } else {
            continue;
        }
        throw std::invalid_argument(error.str());
    }
}

}  // namespace

PlaceWork place_work(PlaceArgs args) {
    check(args);
    const auto shared = std::make_shared<const PlaceArgs>(std::move(args));
    return {static_cast<int64_t>(shared->images.size()), [shared](int64_t i) { place(*shared, i); }};
}

}  // namespace fastfeed
