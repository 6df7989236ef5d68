#include "stack.h"

#include <algorithm>
#include <cstring>

#include "pool.h"

namespace fastfeed {
namespace {

// One row of an image: `w` pixels of `c` values, with the strides between pixels and between values.
struct Row {
    int64_t w, c, pixel_stride, value_stride;
};

bool contiguous(const Row& row) { return row.value_stride == 1 && row.pixel_stride == row.c; }

// RGB pixels that lie four bytes apart, as Pillow keeps them.
void drop_fourth_byte(const uint8_t* src, int64_t w, uint8_t* dst) {
    constexpr bool little_endian = __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__;
    int64_t x = 0;
    // Two pixels at a time, in half the time of byte by byte: the store's last two bytes are overwritten by the next
    // pixel, so there must be one.
    for (; little_endian && x + 3 <= w; x += 2) {
        uint64_t two;
        std::memcpy(&two, src + 4 * x, 8);
        two = (two & 0xffffff) | ((two >> 8) & 0xffffff000000);
        std::memcpy(dst + 3 * x, &two, 8);
    }
    for (; x < w; ++x) std::memcpy(dst + 3 * x, src + 4 * x, 3);
}

void copy_row(const uint8_t* src, const Row& row, uint8_t* dst) {
    if (contiguous(row)) {
        std::memcpy(dst, src, row.w * row.c);
    } else if (row.c == 3 && row.pixel_stride == 4 && row.value_stride == 1) {
        drop_fourth_byte(src, row.w, dst);
    } else if (row.value_stride == 1 && row.c >= 16) {
        // [C, H, W], say: these "pixels" are that image's rows.
        for (int64_t x = 0; x < row.w; ++x) std::memcpy(dst + x * row.c, src + x * row.pixel_stride, row.c);
    } else {
        for (int64_t x = 0; x < row.w; ++x) {
            for (int64_t c = 0; c < row.c; ++c) *dst++ = src[x * row.pixel_stride + c * row.value_stride];
        }
    }
}

// Copies rows begin .. end of one image.
void copy_rows(const StridedImage& image, const std::array<int64_t, 3>& shape, int64_t begin, int64_t end,
               uint8_t* dst) {
    Row row{shape[1], shape[2], image.strides[1], image.strides[2]};
    if (row.c == 1) row.value_stride = 1;  // of a dimension of size 1 it means nothing, and may be anything
    const int64_t size = row.w * row.c;
    const uint8_t* src = image.data + begin * image.strides[0];
    dst += begin * size;
    if (contiguous(row) && image.strides[0] == size) {
        std::memcpy(dst, src, (end - begin) * size);
        return;
    }
    for (int64_t y = begin; y < end; ++y, src += image.strides[0], dst += size) copy_row(src, row, dst);
}

}  // namespace

void stack(const std::vector<StridedImage>& images, const std::array<int64_t, 3>& shape, uint8_t* dst, int threads) {
    const int64_t rows = shape[0], row_size = shape[1] * shape[2];
    if (rows * row_size == 0) return;
    // 256 KB: long enough to hide the cost of a thread.
    const int64_t grain = std::max<int64_t>(1, (1 << 18) / row_size);
    parallel_for(static_cast<int64_t>(images.size()) * rows, grain, threads, [&](int64_t begin, int64_t end) {
        while (begin < end) {
            const int64_t n = begin / rows, first = begin % rows;
            const int64_t last = std::min(rows, first + end - begin);
            copy_rows(images[n], shape, first, last, dst + n * rows * row_size);
            begin += last - first;
        }
    });
}

}  // namespace fastfeed
