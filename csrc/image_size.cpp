#include "image_size.h"

#include <cstdlib>
#include <cstring>

namespace fastfeed {
namespace {

int64_t be16(const uint8_t* p) { return p[0] << 8 | p[1]; }
int64_t be32(const uint8_t* p) { return be16(p) << 16 | be16(p + 2); }
int64_t le16(const uint8_t* p) { return p[1] << 8 | p[0]; }
int64_t le24(const uint8_t* p) { return le16(p) | static_cast<int64_t>(p[2]) << 16; }
int32_t le32(const uint8_t* p) { return static_cast<int32_t>(le24(p) | static_cast<int64_t>(p[3]) << 24); }

// ITU-T T.81, B.1.1: segments of a marker and, for most, a big-endian length that counts itself.
ImageSize jpeg_size(const uint8_t* p, size_t n) {
    size_t i = 2;
    while (i + 9 <= n) {
        if (p[i] != 0xFF) return {};
        const uint8_t marker = p[i + 1];
        if (marker == 0xFF) {  // a fill byte
            i += 1;
        } else if (marker == 0x01 || (marker >= 0xD0 && marker <= 0xD7)) {  // TEM, RSTn: no length
            i += 2;
        } else if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
            return {be16(p + i + 5), be16(p + i + 7)};  // SOFn: length, precision, height, width
        } else if (marker == 0xD9 || marker == 0xDA) {  // the image ends or its data begins: no frame header
            return {};
        } else {
            i += 2 + be16(p + i + 2);
        }
    }
    return {};
}

// RFC 9649: a RIFF container whose first chunk is VP8X (canvas), VP8L (lossless) or VP8 (lossy).
ImageSize webp_size(const uint8_t* p, size_t n) {
    if (n < 30) return {};
    if (std::memcmp(p + 12, "VP8X", 4) == 0) return {le24(p + 27) + 1, le24(p + 24) + 1};
    if (std::memcmp(p + 12, "VP8L", 4) == 0 && p[20] == 0x2F) {
        const uint32_t bits = static_cast<uint32_t>(le32(p + 21));
        return {(bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1};
    }
    if (std::memcmp(p + 12, "VP8 ", 4) == 0 && std::memcmp(p + 23, "\x9D\x01\x2A", 3) == 0) {
        return {le16(p + 28) & 0x3FFF, le16(p + 26) & 0x3FFF};
    }
    return {};
}

}  // namespace

ImageSize image_size(const uint8_t* p, size_t n) {
    if (n >= 4 && p[0] == 0xFF && p[1] == 0xD8) return jpeg_size(p, n);
    if (n >= 24 && std::memcmp(p, "\x89PNG\r\n\x1A\n", 8) == 0) return {be32(p + 20), be32(p + 16)};
    if (n >= 26 && std::memcmp(p, "BM", 2) == 0) {
        // A negative height marks rows stored top down.
        return {std::llabs(static_cast<int64_t>(le32(p + 22))), le32(p + 18)};
    }
    if (n >= 16 && std::memcmp(p, "RIFF", 4) == 0 && std::memcmp(p + 8, "WEBP", 4) == 0) return webp_size(p, n);
    return {};
}

}  // namespace fastfeed
