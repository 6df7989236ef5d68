// Random headers, whole, cut short and damaged, in blocks of exactly their size, so that the address sanitizer sees
// whatever is read beside them. Of whole ones the size and the orientation must be those that were drawn.
//
// fuzz_header SEED COUNT: header number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "image_header.h"

#include <cstring>
#include <memory>
#include <string>

#include "testing.h"

namespace fastfeed {
namespace {

std::string number(uint64_t value, int bytes, bool big) {
    std::string result;
    for (int i = 0; i < bytes; ++i) result += static_cast<char>(value >> 8 * (big ? bytes - 1 - i : i));
    return result;
}
std::string be(uint64_t value, int bytes) { return number(value, bytes, true); }
std::string le(uint64_t value, int bytes) { return number(value, bytes, false); }

struct Drawn {
    std::string bytes;
    int64_t height, width;
    int orientation = 1;
};

// A TIFF directory among others' entries; with one_in(3) none that tells the orientation.
std::string draw_exif(Random& random, int& orientation) {
    const bool big = random.one_in(2);
    const auto entry = [&](int tag, int type, uint32_t count, uint32_t value) {
        const std::string field = type == 3 ? number(value, 2, big) + "\xAA\xAA" : number(value, 4, big);
        return number(tag, 2, big) + number(type, 2, big) + number(count, 4, big) + field;
    };
    std::string entries;
    int count = 0;
    const auto others = [&](int low, int high) {
        for (int64_t i = random.from(0, 3); i > 0; --i, ++count) {
            entries += entry(random.from(low, high), random.from(1, 12), random.from(0, 9), random.from(0, 1 << 30));
        }
    };
    others(0x100, 0x111);
    if (!random.one_in(3)) {
        orientation = random.from(1, 8);
        entries += entry(0x112, random.one_in(4) ? 4 : 3, 1, orientation);
        ++count;
    }
    others(0x113, 0x9999);
    const int64_t gap = random.from(0, 9);
    const std::string head = big ? "MM" : "II";
    return head + number(42, 2, big) + number(8 + gap, 4, big) + random.bytes(gap) + number(count, 2, big) + entries;
}

Drawn draw_jpeg(Random& random) {
    Drawn drawn{"\xFF\xD8", random.from(1, 65535), random.from(1, 65535)};
    const auto segment = [](int marker, const std::string& data) {
        return "\xFF" + be(marker, 1) + be(data.size() + 2, 2) + data;
    };
    const auto others = [&] {
        for (int64_t i = random.from(0, 3); i > 0; --i) {
            if (random.one_in(4)) drawn.bytes += std::string(random.from(1, 3), '\xFF');
            const int markers[] = {0xC4, 0xCC, 0xDB, 0xDD, 0xE0, 0xE2, 0xEF, 0xFE};
            drawn.bytes += segment(markers[random.from(0, 7)], random.bytes(random.from(0, 40)));
        }
    };
    others();
    const bool exif_last = random.one_in(4);
    std::string exif;
    if (random.one_in(2)) exif = segment(0xE1, std::string("Exif\0\0", 6) + draw_exif(random, drawn.orientation));
    if (!exif_last) drawn.bytes += exif;
    others();
    drawn.bytes += segment(0xC0 + random.from(0, 2), "\x08" + be(drawn.height, 2) + be(drawn.width, 2) + "\x03");
    if (exif_last) drawn.bytes += exif;
    others();
    drawn.bytes += segment(0xDA, random.bytes(6)) + std::string(random.from(0, 60), '\x11') + "\xFF\xD9";
    if (random.one_in(3)) drawn.bytes += std::string(random.from(1, 30), '\0');
    return drawn;
}

Drawn draw_png(Random& random) {
    Drawn drawn{std::string("\x89PNG\r\n\x1A\n", 8), random.from(1, INT32_MAX), random.from(1, INT32_MAX)};
    const auto chunk = [&](const char* type, const std::string& data) {
        drawn.bytes += be(data.size(), 4) + type + data + random.bytes(4);
    };
    chunk("IHDR", be(drawn.width, 4) + be(drawn.height, 4) + std::string("\x08\x02\0\0\0", 5));
    const bool after = random.one_in(2);
    const bool exif = random.one_in(2);
    if (exif && !after) chunk("eXIf", draw_exif(random, drawn.orientation));
    for (int64_t i = random.from(1, 4); i > 0; --i) chunk("IDAT", random.bytes(random.from(0, 40)));
    if (exif && after) chunk("eXIf", draw_exif(random, drawn.orientation));
    chunk("IEND", "");
    return drawn;
}

Drawn draw_bmp(Random& random) {
    Drawn drawn{"", random.from(1, 20), random.from(1, 20)};
    const bool core = random.one_in(3);
    const int bits = random.one_in(2) ? 24 : 8;
    const std::string pixels = random.bytes((drawn.width * bits + 31) / 32 * 4 * drawn.height);
    const std::string header =
        core ? le(12, 4) + le(drawn.width, 2) + le(drawn.height, 2) + le(1, 2) + le(bits, 2)
             : le(40, 4) + le(drawn.width, 4) + le(random.one_in(2) ? drawn.height : -drawn.height, 4) + le(1, 2) +
                   le(bits, 2) + std::string(24, '\0');
    drawn.bytes = "BM" + le(14 + header.size() + pixels.size(), 4) + le(0, 4) + le(14 + header.size(), 4);
    drawn.bytes += header + pixels;
    return drawn;
}

Drawn draw_webp(Random& random) {
    Drawn drawn{"", random.from(1, 16383), random.from(1, 16383)};
    std::string chunks;
    const auto chunk = [&](const char* type, const std::string& data) {
        chunks += type + le(data.size(), 4) + data + std::string(data.size() % 2, '\0');
    };
    const int64_t kind = random.from(0, 2);
    if (kind == 0) {
        chunk("VP8 ", random.bytes(3) + "\x9D\x01\x2A" + le(drawn.width, 2) + le(drawn.height, 2) + random.bytes(9));
    } else if (kind == 1) {
        chunk("VP8L", "\x2F" + le((drawn.height - 1) << 14 | (drawn.width - 1), 4) + random.bytes(random.from(0, 20)));
    } else {
        drawn.height = random.from(1, 1 << 24), drawn.width = random.from(1, 1 << 24);
        chunk("VP8X", std::string("\x08\0\0\0", 4) + le(drawn.width - 1, 3) + le(drawn.height - 1, 3));
        for (int64_t i = random.from(0, 3); i > 0; --i) chunk("ALPH", random.bytes(random.from(0, 30)));
        if (random.one_in(2)) {
            const std::string prefix = random.one_in(2) ? std::string("Exif\0\0", 6) : "";
            chunk("EXIF", prefix + draw_exif(random, drawn.orientation));
        }
    }
    drawn.bytes = "RIFF" + le(chunks.size() + 4, 4) + "WEBP" + chunks;
    return drawn;
}

ImageHeader header_of(const std::string& bytes) {
    const std::unique_ptr<uint8_t[]> exact(new uint8_t[bytes.size()]);
    std::memcpy(exact.get(), bytes.data(), bytes.size());
    return image_header(exact.get(), bytes.size());
}

// What must hold of anything.
bool sound(const ImageHeader& header) {
    const bool known = header.height > 0 && header.width > 0;
    const bool unknown = header.height == 0 && header.width == 0;
    return (known || (unknown && header.problem != nullptr)) && header.orientation >= 1 && header.orientation <= 8;
}

bool test_header(uint64_t seed) {
    Random random(seed);
    Drawn (*const draw[])(Random&) = {draw_jpeg, draw_png, draw_bmp, draw_webp};
    Drawn drawn = draw[random.from(0, 3)](random);
    ImageHeader header = header_of(drawn.bytes);
    if (header.problem != nullptr || header.height != drawn.height || header.width != drawn.width ||
        header.orientation != drawn.orientation) {
        std::printf("%" PRId64 "x%" PRId64 " orientation %d, problem: %s, seed %" PRIu64 "\n", header.height,
                    header.width, header.orientation, header.problem ? header.problem : "none", seed);
        return false;
    }
    const auto size = static_cast<int64_t>(drawn.bytes.size());
    for (int i = 0; i < 8; ++i) {
        const std::string cut = drawn.bytes.substr(0, random.from(0, size));
        std::string damaged = random.one_in(2) ? cut : drawn.bytes;
        for (int64_t k = random.from(1, 4); k > 0 && !damaged.empty(); --k) {
            const bool extreme = random.one_in(2);
            damaged[random.from(0, damaged.size() - 1)] =
                static_cast<char>(extreme ? -random.from(0, 1) : random.from(0, 255));
        }
        if (!sound(header_of(cut)) || !sound(header_of(damaged)) || !sound(header_of(random.bytes(i * i)))) {
            return std::printf("unsound, seed %" PRIu64 "\n", seed), false;
        }
    }
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return fuzz(argc, argv, test_header) ? 0 : 1;
}
