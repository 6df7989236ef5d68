// Random operations on random images, by several threads, against the same operations one image at a time, and some
// against a plain rule. Images are of exactly their size, so that the address sanitizer sees whatever is read or
// written beside them.
//
// fuzz_augment SEED COUNT: batch number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "augment.h"

#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "pool.h"
#include "testing.h"

namespace fastfeed {
namespace {

using Block = std::unique_ptr<uint8_t[]>;

Block copy(const uint8_t* from, int64_t size) {
    Block block(new uint8_t[size]);
    std::memcpy(block.get(), from, size);
    return block;
}

float draw_magnitude(Operation operation, Random& random) {
    switch (operation) {
        case Operation::hue: return static_cast<float>(random.real(-0.5, 0.5));
        case Operation::posterize: return static_cast<float>(random.from(1, 8));
        case Operation::solarize: return static_cast<float>(random.real(-10, 300));
        case Operation::gaussian_blur: return static_cast<float>(random.real(0.1, random.one_in(8) ? 3e38 : 5));
        default: break;
    }
    if (random.one_in(8)) {  // any finite number
        const auto exponent = static_cast<int>(random.from(-140, 127));
        const auto value = static_cast<float>(std::ldexp(random.real(-1, 1), exponent));
        return random.one_in(2) ? value : std::trunc(value);
    }
    const double most = operation == Operation::rotate ? 400 : operation >= Operation::translate_x ? 60 : 2;
    return static_cast<float>(random.real(-most, most));
}

AugmentArgs one_operation(const AugmentArgs& batch, int64_t n, int64_t k, uint8_t* image) {
    AugmentArgs args = batch;
    args.images = image;
    args.n = args.operations = 1;
    args.kind = {batch.kind[n * batch.operations + k]};
    args.magnitude = {batch.magnitude[n * batch.operations + k]};
    const auto size = batch.kernel_size.begin() + 2 * (n * batch.operations + k);
    args.kernel_size.assign(size, size + 2);
    return args;
}

// Where the pixel at (x, y) comes from, for operations that have a plain rule; false for the others.
bool plain_rule(Operation operation, float magnitude, int64_t h, int64_t w, int64_t& x, int64_t& y) {
    // Beyond any image: larger ones would be no integers.
    const auto pixels = static_cast<int64_t>(std::trunc(std::max(-1e6f, std::min(1e6f, magnitude))));
    switch (operation) {
        case Operation::nothing: return true;
        case Operation::horizontal_flip: x = w - 1 - x; return true;
        case Operation::vertical_flip: y = h - 1 - y; return true;
        case Operation::translate_x: x -= pixels; return true;
        case Operation::translate_y: y -= pixels; return true;
        default: return false;
    }
}

bool right_pixels(const AugmentArgs& args, const uint8_t* before, const uint8_t* after) {
    for (int64_t row = 0; row < args.h; ++row) {
        for (int64_t column = 0; column < args.w; ++column, after += 3) {
            int64_t x = column, y = row;
            if (!plain_rule(static_cast<Operation>(args.kind[0]), args.magnitude[0], args.h, args.w, x, y)) return true;
            const bool inside = x >= 0 && x < args.w && y >= 0 && y < args.h;
            if (std::memcmp(after, inside ? before + (y * args.w + x) * 3 : args.fill.data(), 3) != 0) return false;
        }
    }
    return true;
}

bool test_batch(uint64_t seed) {
    Random random(seed);
    AugmentArgs args{};
    args.n = random.from(0, 4);
    args.h = random.from(0, random.one_in(4) ? 4 : 40);
    args.w = random.from(0, random.one_in(4) ? 4 : 40);
    if (random.one_in(100)) {  // beyond the fixed point
        args.n = 1;
        args.h = 1;
        args.w = random.from(32000, 36000);
        if (random.one_in(2)) std::swap(args.h, args.w);
    }
    args.operations = random.from(0, 4);
    args.bilinear = random.one_in(2);
    for (auto& level : args.fill) level = static_cast<uint8_t>(random.from(0, 255));
    for (int64_t i = 0; i < args.n * args.operations; ++i) {
        args.kind.push_back(static_cast<uint8_t>(random.from(0, static_cast<int64_t>(Operation::count) - 1)));
        args.magnitude.push_back(draw_magnitude(static_cast<Operation>(args.kind.back()), random));
        // Few pixels to each side, which take less time than the most that an image's size allows.
        for (const int64_t side : {args.h, args.w}) {
            const int64_t most = std::max<int64_t>(side, 1) - 1;
            const int64_t reach = random.one_in(16) && most < 40 ? most : random.from(0, std::min<int64_t>(most, 5));
            args.kernel_size.push_back(static_cast<int32_t>(2 * reach + 1));
        }
    }
    const int64_t size = args.h * args.w * 3;
    const Block batch(new uint8_t[args.n * size]);
    const int64_t low = random.from(0, 255), high = random.from(low, 255);
    for (int64_t i = 0; i < args.n * size; ++i) batch[i] = static_cast<uint8_t>(random.from(low, high));

    const Block before = copy(batch.get(), args.n * size);
    args.images = batch.get();
    const AugmentWork work = augment_work(args);
    Pool(static_cast<int>(random.from(1, 3))).run(work.pieces, work.piece);

    for (int64_t n = 0; n < args.n; ++n) {
        const Block image = copy(before.get() + n * size, size);
        for (int64_t k = 0; k < args.operations; ++k) {
            const Block last = copy(image.get(), size);
            const AugmentArgs one = one_operation(args, n, k, image.get());
            const AugmentWork alone = augment_work(one);
            for (int64_t i = 0; i < alone.pieces; ++i) alone.piece(i);
            if (!right_pixels(one, last.get(), image.get())) {
                return std::printf("kind %d is wrong, seed %" PRIu64 "\n", one.kind[0], seed), false;
            }
        }
        if (std::memcmp(image.get(), batch.get() + n * size, size) != 0) {
            return std::printf("image %" PRId64 " of the batch differs, seed %" PRIu64 "\n", n, seed), false;
        }
    }
    return true;
}

// What cannot be done is refused before anything is.
bool test_refusals() {
    uint8_t pixel[3] = {1, 2, 3};
    AugmentArgs args{pixel, 1, 1, 1, 2, {static_cast<uint8_t>(Operation::invert), 0}, {0, 0}, {0, 0, 0}, false,
                     {0, 0, 1, 1}};
    const auto refused = [&](int kind, float magnitude, int32_t height = 1, int32_t width = 1) {
        args.kind[1] = static_cast<uint8_t>(kind);
        args.magnitude[1] = magnitude;
        args.kernel_size[2] = height;
        args.kernel_size[3] = width;
        try {
            augment_work(args);
        } catch (const std::invalid_argument&) {
            return pixel[0] == 1;
        }
        return std::printf("kind %d was not refused\n", kind), false;
    };
    const auto posterize = static_cast<int>(Operation::posterize), hue = static_cast<int>(Operation::hue);
    const auto blur = static_cast<int>(Operation::gaussian_blur);
    return refused(static_cast<int>(Operation::count), 0) && refused(255, 0) && refused(0, INFINITY) &&
           refused(0, -INFINITY) && refused(0, NAN) && refused(posterize, 0) && refused(posterize, 9) &&
           refused(posterize, -3e38f) && refused(hue, 0.6f) && refused(hue, -0.6f) &&
           refused(blur, 0) && refused(blur, -1) && refused(blur, 1, 3) && refused(blur, 1, 1, 3) &&
           refused(blur, 1, 0) && refused(blur, 1, 1, -1) && refused(blur, 1, INT32_MAX);
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return test_refusals() && fuzz(argc, argv, test_batch) ? 0 : 1;
}
