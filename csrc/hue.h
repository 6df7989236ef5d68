// The hue of RGB pixels, turned by way of Pillow's HSV: bit for bit Image.convert("HSV") and back.
#pragma once

#include <cstdint>

namespace fastfeed {

// `shift` is a part of a turn, in 256ths, which wraps around. `pixels` are `count` times three bytes.
void turn_hue(uint8_t* pixels, int64_t count, uint8_t shift);

}  // namespace fastfeed
