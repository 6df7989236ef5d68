// Random images transformed by random matrices in each instruction set that this processor has: the same bytes, and
// those of Pillow's rule, written pixel by pixel.
//
// bilinear_ways SEED COUNT: image number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "bilinear.cpp"

#include <cmath>
#include <vector>

#include "testing.h"

namespace fastfeed {
namespace {

double between(double first, double second, double share) { return first + (second - first) * share; }

bool test_image(uint64_t seed) {
    Random random(seed);
    const int64_t h = random.from(1, 40), w = random.from(1, 40);
    std::vector<uint8_t> image(3 * h * w + 1);
    for (uint8_t& level : image) level = static_cast<uint8_t>(random.from(0, 255));
    const std::array<uint8_t, 3> fill{1, 2, 255};
    std::array<double, 6> m{};
    for (double& value : m) value = random.one_in(3) ? random.any({0.0, 1.0, -1.0, 0.5}) : random.real(-2, 2);
    for (const int i : {2, 5}) m[i] *= static_cast<double>(random.from(0, 30));

    std::vector<uint8_t> expected(3 * h * w);
    for (int64_t i = 0; i < 3 * h * w; ++i) {
        const double column = static_cast<double>(i / 3 % w) + 0.5, row = static_cast<double>(i / 3 / w) + 0.5;
        const double x = m[0] * column + m[1] * row + m[2], y = m[3] * column + m[4] * row + m[5];
        if (x < 0 || x >= static_cast<double>(w) || y < 0 || y >= static_cast<double>(h)) {
            expected[i] = fill[i % 3];
            continue;
        }
        const double left = std::floor(x - 0.5), upper = std::floor(y - 0.5);
        const auto level = [&](double across, double down) -> double {
            const auto from_x = std::min<int64_t>(std::max<int64_t>(static_cast<int64_t>(across), 0), w - 1);
            const auto from_y = std::min<int64_t>(std::max<int64_t>(static_cast<int64_t>(down), 0), h - 1);
            return image[3 * (from_y * w + from_x) + i % 3];
        };
        const double share = x - 0.5 - left;
        const double above = between(level(left, upper), level(left + 1, upper), share);
        const double below = between(level(left, upper + 1), level(left + 1, upper + 1), share);
        expected[i] = static_cast<uint8_t>(between(above, below, y - 0.5 - upper));
    }
    std::vector<uint8_t> got(3 * h * w);
    warp_rows(image.data(), got.data(), h, w, m, fill);
    if (got != expected) return std::printf("the baseline differs, seed %" PRIu64 "\n", seed), false;
#if defined(__x86_64__)
    got.assign(got.size(), 0);
    if (simd() >= Simd::avx2) avx2::warp(image.data(), got.data(), h, w, m, fill);
    if (simd() >= Simd::avx2 && got != expected) return std::printf("AVX2 differs, seed %" PRIu64 "\n", seed), false;
#endif
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return fuzz(argc, argv, test_image) ? 0 : 1;
}
