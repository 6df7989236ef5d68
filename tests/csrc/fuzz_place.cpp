// Random images and places, copied by the pieces that a pool is given, against the same pixel by pixel; and arguments
// that are refused. Images and outputs are blocks of exactly their size, so that the address sanitizer sees whatever is
// read or written beside them.
//
// fuzz_place SEED COUNT: batch number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "place.cpp"
#include "pool.h"
#include "testing.h"

namespace fastfeed {
namespace {

struct Batch {
    PlaceArgs args{};
    std::vector<std::unique_ptr<uint8_t[]>> blocks;
};

int64_t draw_side(Random& random) { return random.one_in(20) ? random.from(100, 300) : random.from(1, 40); }

Batch draw_batch(Random& random) {
    Batch batch;
    PlaceArgs& args = batch.args;
    args.out_h = draw_side(random);
    args.out_w = draw_side(random);
    for (uint8_t& level : args.fill) level = static_cast<uint8_t>(random.from(0, 255));
    for (int64_t n = random.from(0, 4); n > 0; --n) {
        PlacedImage image{};
        image.top = random.one_in(3) ? 0 : random.from(0, args.out_h);
        image.left = random.one_in(3) ? 0 : random.from(0, args.out_w);
        image.place_height = random.one_in(3) ? args.out_h - image.top : random.from(0, args.out_h - image.top);
        image.place_width = random.one_in(3) ? args.out_w - image.left : random.from(0, args.out_w - image.left);
        image.height = std::max<int64_t>(1, image.place_height + (random.one_in(3) ? draw_side(random) : 0));
        image.width = std::max<int64_t>(1, image.place_width + (random.one_in(3) ? draw_side(random) : 0));
        if (random.one_in(5)) image.height = image.width = 1;
        image.stride = 3 * image.width + (random.one_in(2) ? 0 : random.from(1, 70));
        const int64_t size = (image.height - 1) * image.stride + 3 * image.width;
        batch.blocks.emplace_back(new uint8_t[size]);
        for (int64_t i = 0; i < size; ++i) batch.blocks.back()[i] = static_cast<uint8_t>(random.from(0, 255));
        image.pixels = batch.blocks.back().get();
        args.images.push_back(image);
    }
    return batch;
}

uint8_t expected(const PlaceArgs& args, const PlacedImage& image, int64_t y, int64_t x, int64_t c) {
    int64_t row = y - image.top, column = x - image.left;
    if (row < 0 || row >= image.place_height || column < 0 || column >= image.place_width) return args.fill[c];
    if (image.height == 1 && image.width == 1) row = column = 0;
    return image.pixels[row * image.stride + column * 3 + c];
}

bool refused(const PlaceArgs& args) {
    try {
        place_work(args);
    } catch (const std::invalid_argument&) {
        return true;
    }
    return false;
}

// Changes one image so that something of it is wrong.
PlaceArgs spoilt(PlaceArgs args, Random& random) {
    PlacedImage& image = args.images[random.from(0, static_cast<int64_t>(args.images.size()) - 1)];
    const int64_t beyond = random.one_in(2) ? 1 : random.from(1, INT64_MAX / 2);
    switch (random.from(0, 8)) {
        case 0: image.top = args.out_h - image.place_height + beyond; break;
        case 1: image.left = args.out_w - image.place_width + beyond; break;
        case 2: image.top = -beyond; break;
        case 3: image.place_height = args.out_h - image.top + beyond; break;
        case 4: image.place_width = -beyond; break;
        case 5: image.height = random.one_in(2) ? 0 : MAX_SIDE + beyond; break;
        case 6: image.width = random.one_in(2) ? -beyond : MAX_SIDE + beyond; break;
        case 7: image.pixels = nullptr; break;
        case 8: args.out_w = random.one_in(2) ? 0 : MAX_SIDE + beyond; break;
    }
    return args;
}

bool test_batch(uint64_t seed) {
    Random random(seed);
    Batch batch = draw_batch(random);
    PlaceArgs& args = batch.args;
    const int64_t images = static_cast<int64_t>(args.images.size());
    if (images > 0 && !refused(spoilt(args, random))) {
        return std::printf("not refused, seed %" PRIu64 "\n", seed), false;
    }
    const std::unique_ptr<uint8_t[]> dst(new uint8_t[images * args.out_h * args.out_w * 3]);
    args.dst = dst.get();
    const PlaceWork work = place_work(args);
    Pool(2).run(work.pieces, work.piece);
    const uint8_t* got = dst.get();
    for (const PlacedImage& image : args.images) {
        for (int64_t y = 0; y < args.out_h; ++y) {
            for (int64_t x = 0; x < args.out_w; ++x) {
                for (int64_t c = 0; c < 3; ++c) {
                    if (*got++ != expected(args, image, y, x, c)) {
                        return std::printf("differs, seed %" PRIu64 "\n", seed), false;
                    }
                }
            }
        }
    }
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return fuzz(argc, argv, test_batch) ? 0 : 1;
}
