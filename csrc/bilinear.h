// Bilinear interpolation of transformed images, as Pillow's Image.transform and Image.rotate do it: bit for bit.
#pragma once

#include <array>
#include <cstdint>

namespace fastfeed {

// Writes an RGB image of height x width pixels made of another of this size: the pixel at (x, y) comes from
// (m[0] x + m[1] y + m[2], m[3] x + m[4] y + m[5]), where centres of pixels lie at halves, and is `fill` where that is
// outside of the image. Less than half a pixel from an edge, where neighbours are missing, the image goes on as there.
//
// One byte behind the pixels of `source` may be read.
void warp_bilinear(const uint8_t* source, uint8_t* out, int64_t height, int64_t width, const std::array<double, 6>& m,
                   const std::array<uint8_t, 3>& fill);

}  // namespace fastfeed
