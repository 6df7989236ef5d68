// Copies images of one shape into one contiguous batch.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

namespace fastfeed {

// One image of uint8: element (i, j, k) lies at data + i * strides[0] + j * strides[1] + k * strides[2]. Strides are
// in bytes and may be negative or 0.
struct StridedImage {
    const uint8_t* data;
    std::array<int64_t, 3> strides;
};

// Writes images[n] to dst + n * shape[0] * shape[1] * shape[2], contiguously. Every image has the given shape, and dst
// overlaps none of them. On up to `threads` threads (0: one per core). Where there is nothing to copy, no address is
// used.
void stack(const std::vector<StridedImage>& images, const std::array<int64_t, 3>& shape, uint8_t* dst, int threads);

}  // namespace fastfeed
