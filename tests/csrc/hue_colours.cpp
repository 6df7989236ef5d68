// Every colour there is, with some turns of its hue, in each instruction set that this processor has, against Pillow's
// formulas as they stand in its Convert.c: in floats and doubles, colour by colour.
#include <array>
#include <cmath>
#include <cstdio>
#include <vector>

#include "hue.cpp"

namespace fastfeed {
namespace {

using Colour = std::array<uint8_t, 3>;

Colour to_hsv(const Colour& rgb) {
    const int r = rgb[0], g = rgb[1], b = rgb[2];
    const int high = std::max({r, g, b}), low = std::min({r, g, b});
    if (high == low) return {0, 0, static_cast<uint8_t>(high)};
    const float range = static_cast<float>(high - low), saturation = range / static_cast<float>(high);
    const float red = static_cast<float>(high - r) / range, green = static_cast<float>(high - g) / range;
    const float blue = static_cast<float>(high - b) / range;
    float hue = r == high ? blue - green
                : g == high ? static_cast<float>(2.0 + red - blue) : static_cast<float>(4.0 + green - red);
    hue = static_cast<float>(std::fmod(hue / 6.0 + 1.0, 1.0));
    return {static_cast<uint8_t>(static_cast<int>(hue * 255.0)), static_cast<uint8_t>(saturation * 255.0),
            static_cast<uint8_t>(high)};
}

Colour to_rgb(const Colour& hsv) {
    const uint8_t s = hsv[1], v = hsv[2];
    if (s == 0) return {v, v, v};
    const double sectors = static_cast<float>(hsv[0]) * 6.0 / 255.0;
    const int sector = static_cast<int>(std::floor(sectors));
    const float into = static_cast<float>(sectors - sector), saturation = static_cast<float>(s / 255.0);
    const auto rounded = [v](double share) { return static_cast<uint8_t>(std::round(v * share)); };
    const uint8_t p = rounded(1.0 - saturation), q = rounded(1.0 - saturation * into);
    const uint8_t t = rounded(1.0 - saturation * (1.0 - into));
    const std::array<Colour, 6> by_sector{{{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}}};
    return by_sector[sector % 6];
}

bool test(const char* name, void (*turn)(uint8_t*, int64_t, uint8_t)) {
    constexpr int COLOURS = 1 << 24;
    std::vector<Colour> colours(COLOURS);
    for (const uint8_t shift : {0, 100}) {
        for (int i = 0; i < COLOURS; ++i) {
            colours[i] = {static_cast<uint8_t>(i), static_cast<uint8_t>(i >> 8), static_cast<uint8_t>(i >> 16)};
        }
        const std::vector<Colour> before = colours;
        // A rest that is not a whole block, as most images have.
        turn(colours[0].data(), 77, shift);
        turn(colours[77].data(), COLOURS - 77, shift);
        for (int i = 0; i < COLOURS; ++i) {
            Colour hsv = to_hsv(before[i]);
            hsv[0] = static_cast<uint8_t>(hsv[0] + shift);
            const Colour expected = to_rgb(hsv);
            if (colours[i] == expected) continue;
            std::printf("%s, turned by %d: colour %06x became %d %d %d instead of %d %d %d\n", name, shift, i,
                        colours[i][0], colours[i][1], colours[i][2], expected[0], expected[1], expected[2]);
            return false;
        }
    }
    return true;
}

}  // namespace
}  // namespace fastfeed

int main() {
    using namespace fastfeed;
    if (!test("baseline", turn_pixels)) return 1;
#if defined(__x86_64__)
    if (simd() >= Simd::avx2 && !test("AVX2", avx2::turn)) return 1;
    if (simd() >= Simd::avx512 && !test("AVX-512", avx512::turn)) return 1;
#endif
    std::printf("every colour\n");
}
