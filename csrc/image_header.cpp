#include "image_header.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>

namespace fastfeed {
namespace {

#define SUPPORTED "JPEG, PNG, BMP or WebP"

constexpr const char* kNoHeader = "no complete " SUPPORTED " header";
constexpr int64_t kLargestSide = INT32_MAX;

// Bytes that are looked at only where there are some.
class Bytes {
  public:
    Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

    const uint8_t* begin() const { return data_; }
    const uint8_t* end() const { return data_ + size_; }
    size_t size() const { return size_; }
    bool has(size_t at, size_t count) const { return at <= size_ && count <= size_ - at; }
    uint8_t operator[](size_t at) const { return data_[at]; }
    // What there is of `count` bytes.
    Bytes part(size_t at, size_t count) const {
        at = std::min(at, size_);
        return {data_ + at, std::min(count, size_ - at)};
    }
    template <size_t N>
    bool holds(size_t at, const char (&text)[N]) const {
        return has(at, N - 1) && std::memcmp(data_ + at, text, N - 1) == 0;
    }

    uint32_t be16(size_t at) const { return data_[at] << 8 | data_[at + 1]; }
    uint32_t be32(size_t at) const { return be16(at) << 16 | be16(at + 2); }
    uint32_t le16(size_t at) const { return data_[at + 1] << 8 | data_[at]; }
    uint32_t le24(size_t at) const { return le16(at) | static_cast<uint32_t>(data_[at + 2]) << 16; }
    uint32_t le32(size_t at) const { return le16(at) | le16(at + 2) << 16; }

  private:
    const uint8_t* data_;
    size_t size_;
};

// Exif 3.0, 4.5: a TIFF structure whose first directory may hold tag 0x0112, Orientation. Some writers put JPEG's
// "Exif\0\0" before it in WebP and PNG too.
uint8_t exif_orientation(Bytes b) {
    while (b.holds(0, "Exif\0\0")) b = b.part(6, b.size());
    const bool big = b.holds(0, "MM\0*");
    if (!b.has(0, 8) || !(big || b.holds(0, "II*\0"))) return 1;
    const auto u16 = [&](size_t at) { return big ? b.be16(at) : b.le16(at); };
    const auto u32 = [&](size_t at) { return big ? b.be32(at) : b.le32(at); };
    const size_t directory = u32(4);
    if (!b.has(directory, 2)) return 1;
    const size_t entries = u16(directory);
    for (size_t i = 0; i < entries && b.has(directory + 2 + 12 * i, 12); ++i) {
        const size_t entry = directory + 2 + 12 * i;
        if (u16(entry) != 0x0112) continue;
        constexpr uint32_t short_type = 3, long_type = 4;
        const uint32_t type = u16(entry + 2), count = u32(entry + 4);
        if (count != 1 || (type != short_type && type != long_type)) return 1;
        const uint32_t value = type == short_type ? u16(entry + 8) : u32(entry + 8);
        return value >= 1 && value <= 8 ? static_cast<uint8_t>(value) : 1;
    }
    return 1;
}

void set_size(ImageHeader& header, int64_t height, int64_t width) {
    if (height > kLargestSide || width > kLargestSide || height <= 0 || width <= 0) return;
    header.height = height;
    header.width = width;
}

// In entropy-coded data 0xFF is followed by 0 or a marker, so whatever looks like EOI there is one. Searched from the
// end, where it stands in most files; some have other data after it.
bool has_end_of_image(Bytes scans) {
    const uint8_t *begin = scans.begin(), *end = scans.end();
    while (end > begin) {
        const auto* found = static_cast<const uint8_t*>(memrchr(begin, 0xD9, end - begin));
        if (found == nullptr || found == begin) return false;
        if (found[-1] == 0xFF) return true;
        end = found;
    }
    return false;
}

// ITU-T T.81, B.1.1: segments of a marker and, for most, a big-endian length that counts itself.
ImageHeader jpeg_header(const Bytes& b) {
    ImageHeader header;
    header.problem = kNoHeader;
    bool exif = false;
    for (size_t i = 2; b.has(i, 2) && b[i] == 0xFF;) {
        const uint8_t marker = b[i + 1];
        if (marker == 0xFF) {  // a fill byte
            i += 1;
            continue;
        }
        // A stray stuffed byte, which decoders skip; TEM, RSTn, SOI: no length.
        if (marker == 0x00 || marker == 0x01 || (marker >= 0xD0 && marker <= 0xD8)) {
            i += 2;
            continue;
        }
        if (marker == 0xD9 || !b.has(i, 4) || b.be16(i + 2) < 2) break;
        const size_t length = b.be16(i + 2);
        if (marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC) {
            if (!b.has(i, 9)) break;
            set_size(header, b.be16(i + 5), b.be16(i + 7));  // SOFn: length, precision, height, width
        } else if (marker == 0xE1 && !exif && b.holds(i + 4, "Exif\0\0")) {
            exif = true;
            header.orientation = exif_orientation(b.part(i + 4, length - 2));
        } else if (marker == 0xDA) {  // SOS: the image's data begin
            if (header.height > 0 && has_end_of_image(b.part(i + 2 + length, b.size()))) header.problem = nullptr;
            break;
        }
        i += 2 + length;
    }
    if (header.height > 0 && header.problem != nullptr) header.problem = "a JPEG file without its end: cut short";
    return header;
}

// ISO/IEC 15948, 5.3: chunks of a length, a type, data and a check sum.
ImageHeader png_header(const Bytes& b) {
    ImageHeader header;
    header.problem = kNoHeader;
    if (!b.holds(12, "IHDR") || !b.has(16, 8)) return header;
    set_size(header, b.be32(20), b.be32(16));
    if (header.height == 0) return header;
    header.problem = "a PNG file without its end: cut short";
    for (size_t i = 8; b.has(i, 8);) {
        const size_t length = b.be32(i);
        if (b.holds(i + 4, "IEND") && b.has(i, 12)) {
            header.problem = nullptr;
            break;
        }
        if (b.holds(i + 4, "eXIf")) header.orientation = exif_orientation(b.part(i + 8, length));
        i += length + 12;
    }
    return header;
}

ImageHeader bmp_header(const Bytes& b) {
    ImageHeader header;
    header.problem = kNoHeader;
    if (!b.has(14, 4)) return header;
    constexpr uint32_t core = 12;  // the size of OS/2's first header, with sides of 16 bits; all later ones agree
    const bool is_core = b.le32(14) == core;
    if (!b.has(14, is_core ? core : 20)) return header;
    int64_t height, width, bits, compression = 0;
    if (is_core) {
        width = b.le16(18), height = b.le16(20), bits = b.le16(24);
    } else {
        // A negative height marks rows stored top down.
        width = static_cast<int32_t>(b.le32(18));
        height = std::llabs(static_cast<int64_t>(static_cast<int32_t>(b.le32(22))));
        bits = b.le16(28), compression = b.le32(30);
    }
    set_size(header, height, width);
    if (header.height == 0) return header;
    constexpr int64_t rgb = 0, bit_fields = 3;  // whose rows are of one length, a multiple of 4 bytes
    const bool rows = compression == rgb || compression == bit_fields;
    // In floating point: the product of two sides does not fit an integer.
    const double end = b.le32(10) + static_cast<double>((width * bits + 31) / 32 * 4) * static_cast<double>(height);
    header.problem = rows && end > static_cast<double>(b.size()) ? "a BMP file without its end: cut short" : nullptr;
    return header;
}

// RFC 9649: a RIFF container whose first chunk is VP8X (canvas), VP8L (lossless) or VP8 (lossy).
ImageHeader webp_header(const Bytes& b) {
    ImageHeader header;
    header.problem = kNoHeader;
    bool extended = false;
    if (b.holds(12, "VP8X") && b.has(20, 10)) {
        extended = true;
        set_size(header, static_cast<int64_t>(b.le24(27)) + 1, static_cast<int64_t>(b.le24(24)) + 1);
    } else if (b.holds(12, "VP8L") && b.has(20, 5) && b[20] == 0x2F) {
        const uint32_t bits = b.le32(21);
        set_size(header, (bits >> 14 & 0x3FFF) + 1, (bits & 0x3FFF) + 1);
    } else if (b.holds(12, "VP8 ") && b.has(20, 10) && b.holds(23, "\x9D\x01\x2A")) {
        set_size(header, b.le16(28) & 0x3FFF, b.le16(26) & 0x3FFF);
    }
    if (header.height == 0) return header;
    header.problem = b.has(8, b.le32(4)) ? nullptr : "a WebP file without its end: cut short";
    for (size_t i = 12; extended && b.has(i, 8);) {
        const size_t length = b.le32(i + 4);
        if (b.holds(i, "EXIF")) {
            header.orientation = exif_orientation(b.part(i + 8, length));
            break;
        }
        i += 8 + length + length % 2;
    }
    return header;
}

#define INSTEAD(what) what "; expected " SUPPORTED

// What people take for one of the four: other formats under their names, and what a server sends instead of a file.
const char* other_format(const Bytes& b) {
    if (b.holds(0, "GIF8")) return INSTEAD("a GIF file");
    if (b.holds(0, "II*\0") || b.holds(0, "MM\0*") || b.holds(0, "II+\0") || b.holds(0, "MM\0+")) {
        return INSTEAD("a TIFF file");
    }
    if (b.holds(4, "ftyp")) {
        for (const char* brand : {"avif", "avis", "heic", "heix", "hevc", "hevx", "heim", "heis", "mif1", "msf1"}) {
            if (b.has(8, 4) && std::memcmp(b.begin() + 8, brand, 4) == 0) return INSTEAD("a HEIF or AVIF file");
        }
        return INSTEAD("a video");
    }
    if (b.holds(4, "jP  ") || b.holds(0, "\xFF\x4F\xFF\x51")) return INSTEAD("a JPEG 2000 file");
    if (b.holds(4, "JXL ") || b.holds(0, "\xFF\x0A")) return INSTEAD("a JPEG XL file");
    if (b.holds(0, "\x1F\x8B")) return INSTEAD("a gzip file");
    if (b.holds(0, "PK\x03\x04")) return INSTEAD("a zip file");

    if (b.holds(0, "version https://git-lfs")) return "a Git LFS pointer, without the file: run git lfs pull";

    Bytes text = b.part(b.holds(0, "\xEF\xBB\xBF") ? 3 : 0, 256);
    const auto space = [](uint8_t c) { return c == ' ' || (c >= '\t' && c <= '\r'); };
    const auto printed = [&](uint8_t c) { return space(c) || (c > ' ' && c != 0x7F); };
    const uint8_t* first = std::find_if_not(text.begin(), text.end(), space);
    if (first == text.end() || !std::all_of(first, text.end(), printed)) return kNoHeader;
    return *first == '<' ? INSTEAD("an HTML or XML page") : INSTEAD("a text file");
}

}  // namespace

ImageHeader image_header(const uint8_t* data, size_t size) {
    const Bytes b(data, size);
    if (b.holds(0, "\xFF\xD8")) return jpeg_header(b);
    if (b.holds(0, "\x89PNG\r\n\x1A\n")) return png_header(b);
    if (b.holds(0, "BM")) return bmp_header(b);
    if (b.holds(0, "RIFF") && b.holds(8, "WEBP")) return webp_header(b);
    ImageHeader header;
    header.problem = size == 0 ? "an empty file" : other_format(b);
    return header;
}

}  // namespace fastfeed
