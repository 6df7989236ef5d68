// What an encoded image says about itself, without decoding it.
#pragma once

#include <cstddef>
#include <cstdint>

namespace fastfeed {

struct ImageHeader {
    int64_t height = 0, width = 0;  // as stored, before any rotation; 0 where unknown
    uint8_t orientation = 1;        // EXIF's, 1 to 8; 1 where there is none
    const char* problem = nullptr;  // why no decoder can make a whole image of it; nullptr: nothing is known against it
};

// JPEG, PNG, BMP and WebP, with the orientation from APP1, eXIf or the EXIF chunk. A file that ends before its format
// says so has a problem, and so has one of another format. Never reads outside [data, data + size), and takes time in
// proportion to the number of segments, not of bytes, but for files that end too early or go on after their end.
ImageHeader image_header(const uint8_t* data, size_t size);

}  // namespace fastfeed
