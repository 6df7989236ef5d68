// Gaussian blur, as torchvision's gaussian_blur: in fp32, the border reflected without repeating the outermost pixel.
#pragma once

#include <cstdint>

namespace fastfeed {

// In place, on an RGB image of height x width pixels. Both sides of the kernel are odd, and half of each, cut off, is
// less than the image's side. `sigma` is in pixels, above 0.
//
// The result does not depend on the processor, and an image's mirror image becomes the mirror image of the result.
void gaussian_blur(uint8_t* pixels, int64_t height, int64_t width, int64_t kernel_height, int64_t kernel_width,
                   float sigma);

}  // namespace fastfeed
