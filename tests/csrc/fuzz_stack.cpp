// Random images of any strides, copied into a batch and compared byte by byte; and the memory that outputs are made
// in. Blocks are of exactly their size, so that the address sanitizer sees whatever is read or written beside them.
//
// fuzz_stack SEED COUNT: batch number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include "stack.h"

#include <cstring>
#include <memory>

#include "recycler.h"
#include "testing.h"

namespace fastfeed {
namespace {

struct OwnedImage {
    StridedImage image;
    std::unique_ptr<uint8_t[]> block;
};

OwnedImage draw_image(const std::array<int64_t, 3>& shape, Random& random) {
    // Dimensions nested in any order, with gaps, backwards, or repeated; or as Pillow keeps RGB.
    std::array<int64_t, 3> strides{4 * shape[1], 4, 1};
    if (shape[2] != 3 || !random.one_in(3)) {
        std::array<int, 3> order{2, 1, 0};
        if (random.one_in(2)) random.shuffle(order.begin(), order.end());
        int64_t step = 1;
        for (const int d : order) {
            if (random.one_in(3)) step += random.from(0, 3);
            strides[d] = random.one_in(10) ? 0 : random.one_in(4) ? -step : step;
            step *= std::max<int64_t>(1, shape[d]);
        }
    }
    int64_t lowest = 0, highest = -1;
    if (shape[0] * shape[1] * shape[2] != 0) {
        highest = 0;
        for (int d = 0; d < 3; ++d) (strides[d] < 0 ? lowest : highest) += strides[d] * (shape[d] - 1);
    }
    OwnedImage result;
    result.block.reset(new uint8_t[highest - lowest + 1]);
    for (int64_t i = 0; i <= highest - lowest; ++i) result.block[i] = static_cast<uint8_t>(random.from(0, 255));
    for (int d = 0; d < 3; ++d) {  // the stride of a dimension of size 1 means nothing
        if (shape[d] == 1 && random.one_in(4)) strides[d] = random.from(-1000, 1000);
    }
    result.image = {result.block.get() - lowest, strides};
    return result;
}

bool test_batch(uint64_t seed) {
    Random random(seed);
    std::array<int64_t, 3> shape{random.from(0, 7), random.from(0, 40), random.from(0, 40)};
    if (!random.one_in(4)) shape[2] = std::array<int64_t, 3>{1, 3, 4}[random.from(0, 2)];
    if (random.one_in(200)) shape = {random.from(200, 400), random.from(100, 300), 3};  // for several threads
    std::vector<OwnedImage> owned(random.from(0, 4));
    std::vector<StridedImage> images;
    for (auto& one : owned) {
        one = draw_image(shape, random);
        images.push_back(one.image);
    }
    const int64_t size = shape[0] * shape[1] * shape[2];
    const std::unique_ptr<uint8_t[]> batch(new uint8_t[images.size() * size]);
    stack(images, shape, batch.get(), static_cast<int>(random.from(0, 3)));
    const uint8_t* got = batch.get();
    for (const auto& image : images) {
        for (int64_t i = 0; i < shape[0]; ++i) {
            for (int64_t j = 0; j < shape[1]; ++j) {
                for (int64_t k = 0; k < shape[2]; ++k) {
                    const uint8_t expected =
                        image.data[i * image.strides[0] + j * image.strides[1] + k * image.strides[2]];
                    if (*got++ != expected) return std::printf("stack differs, seed %" PRIu64 "\n", seed), false;
                }
            }
        }
    }
    return true;
}

// Blocks are aligned, of the size asked for, used again, never lent twice, and few are kept. What is not freed, the
// leak sanitizer sees.
bool test_recycler() {
    for (const int64_t size : {0, 1, 63, 64, 65, 1000, 1 << 20}) {
        Recycler one(1), none(0);
        for (Recycler* recycler : {&one, &none}) {
            const Recycler::Block block = recycler->take(size);
            CHECK(block.size >= size && block.size % 64 == 0);
            CHECK(reinterpret_cast<uintptr_t>(block.data) % 64 == 0);
            std::memset(block.data, 1, block.size);
            recycler->give(block);
        }
    }

    Recycler recycler(2);
    const Recycler::Block small = recycler.take(1000), middle = recycler.take(5000), large = recycler.take(9000);
    CHECK(small.data != middle.data && middle.data != large.data && small.data != large.data);
    recycler.give(large);
    recycler.give(middle);
    CHECK(recycler.take(5000).data == middle.data);  // the smallest that is large enough
    recycler.give(middle);
    recycler.give(small);  // the third of two: `large`, which waited longest, is freed
    const Recycler::Block other = recycler.take(9000), tiny = recycler.take(10);
    CHECK(other.size >= 9000 && tiny.size == 64);  // no giant for a dwarf
    CHECK(recycler.take(5000).data == middle.data && recycler.take(1000).data == small.data);
    recycler.give(other);
    recycler.give(tiny);
    recycler.give(middle);
    recycler.give(small);
    return true;
}

// Many blocks lent and given back in any order, each filled with its own number while it is lent.
bool test_recycler_at_random() {
    Random random(0);
    Recycler recycler(3);
    std::vector<Recycler::Block> lent;
    std::vector<uint8_t> marks;
    for (int i = 0; i < 5000; ++i) {
        if (lent.size() < 8 && random.one_in(2)) {
            const int64_t size = random.from(0, 4000);
            lent.push_back(recycler.take(size));
            marks.push_back(static_cast<uint8_t>(i));
            CHECK(lent.back().size >= size);
            std::memset(lent.back().data, marks.back(), lent.back().size);
        } else if (!lent.empty()) {
            const int64_t at = random.from(0, static_cast<int64_t>(lent.size()) - 1);
            const auto* bytes = static_cast<const uint8_t*>(lent[at].data);
            for (int64_t b = 0; b < lent[at].size; ++b) CHECK(bytes[b] == marks[at]);
            recycler.give(lent[at]);
            lent.erase(lent.begin() + at);
            marks.erase(marks.begin() + at);
        }
    }
    for (const auto& block : lent) recycler.give(block);
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    return test_recycler() && test_recycler_at_random() && fuzz(argc, argv, test_batch) ? 0 : 1;
}
