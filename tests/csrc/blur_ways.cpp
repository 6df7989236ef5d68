// Random images blurred in each instruction set that this processor has: the same bytes, and those of the formula in
// doubles, wherever that is not so close to a half that fp32 may round it either way.
//
// blur_ways SEED COUNT: image number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "blur.cpp"

#include "testing.h"

namespace fastfeed {
namespace {

std::vector<double> weights(int64_t size, float sigma) {
    std::vector<double> result(size);
    double sum = 0;
    for (int64_t i = 0; i < size; ++i) {
        const double distance = static_cast<double>(i - size / 2) / sigma;
        sum += result[i] = std::exp(-distance * distance / 2);
    }
    for (double& weight : result) weight /= sum;
    return result;
}

bool test_image(uint64_t seed) {
    Random random(seed);
    const int64_t h = random.from(1, 24), w = random.from(1, random.one_in(4) ? 90 : 24);
    const int64_t kernel_h = 2 * random.from(0, std::min<int64_t>(h - 1, 12)) + 1;
    const int64_t kernel_w = 2 * random.from(0, std::min<int64_t>(w - 1, 40)) + 1;
    const float sigma = random.real<float>(0.05, random.one_in(2) ? 3 : 30);
    std::vector<uint8_t> image(3 * h * w);
    for (uint8_t& level : image) level = static_cast<uint8_t>(random.from(0, 255));

    std::vector<uint8_t> expected = image;
    const auto blur = [&](std::vector<uint8_t>& pixels) {
        return Blur{pixels.data(), h, w, half_kernel(kernel_h, sigma), half_kernel(kernel_w, sigma)};
    };
    blur_rows(blur(expected));
#if defined(__x86_64__)
    std::vector<uint8_t> got = image;
    if (simd() >= Simd::avx2) avx2::blur(blur(got));
    if (simd() >= Simd::avx2 && got != expected) return std::printf("AVX2 differs, seed %" PRIu64 "\n", seed), false;
    got = image;
    if (simd() >= Simd::avx512) avx512::blur(blur(got));
    if (simd() >= Simd::avx512 && got != expected) {
        return std::printf("AVX-512 differs, seed %" PRIu64 "\n", seed), false;
    }
#endif
    const std::vector<double> down = weights(kernel_h, sigma), across = weights(kernel_w, sigma);
    for (int64_t i = 0; i < 3 * h * w; ++i) {
        double sum = 0;
        for (int64_t y = 0; y < kernel_h; ++y) {
            for (int64_t x = 0; x < kernel_w; ++x) {
                // Back from beyond an edge, which is passed once at most.
                const int64_t row = std::abs(i / 3 / w + y - kernel_h / 2);
                const int64_t column = std::abs(i / 3 % w + x - kernel_w / 2);
                const int64_t from = (row < h ? row : 2 * h - 2 - row) * w + (column < w ? column : 2 * w - 2 - column);
                sum += down[y] * across[x] * image[3 * from + i % 3];
            }
        }
        if (std::fabs(sum - expected[i]) > 0.5 + 1e-4) {
            return std::printf("value %" PRId64 " is %d instead of %f, seed %" PRIu64 "\n", i, expected[i], sum, seed),
                   false;
        }
    }
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return fuzz(argc, argv, test_image) ? 0 : 1;
}
