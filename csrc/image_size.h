// Height and width of an encoded image, from its header alone.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfeed {

struct ImageSize {
    int64_t height = 0, width = 0;
    bool known() const { return height > 0 && width > 0; }
};

// JPEG, PNG, BMP and WebP; the size as stored, that is before any EXIF rotation. Returns an unknown size for
// any other format and for a header that is cut short. Never reads outside [data, data + size).
ImageSize image_size(const uint8_t* data, size_t size);

}  // namespace fastfeed
