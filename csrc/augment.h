// Colour and geometry of uint8 images [N, H, W, 3], with the results of Pillow's ImageEnhance, ImageOps and Image, as
// torchvision's transforms call them; but for the blur, which torchvision does itself: blur.h.
#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

namespace fastfeed {

// fastfeed/data/augment.py's Kind, which says what the magnitudes mean.
enum class Operation : uint8_t {
    nothing,
    horizontal_flip,
    vertical_flip,
    grayscale,
    brightness,
    contrast,
    saturation,
    hue,
    sharpness,
    posterize,
    solarize,
    autocontrast,
    equalize,
    invert,
    shear_x,
    shear_y,
    translate_x,
    translate_y,
    rotate,
    gaussian_blur,
    count
};

struct AugmentArgs {
    uint8_t* images;  // contiguous
    int64_t n, h, w;
    int64_t operations;                // of each sample, done in their order
    std::vector<uint8_t> kind;         // [n, operations]
    std::vector<float> magnitude;      // [n, operations]
    std::array<uint8_t, 3> fill;       // of pixels that come from outside of the image
    bool bilinear;                     // whether shears and rotations interpolate, or take the nearest pixel
    std::vector<int32_t> kernel_size;  // [n, operations, 2], height and width of the kernels of blurs
};

// The operations as pieces of work for a pool: call piece(i) for every i in [0, pieces).
struct AugmentWork {
    int64_t pieces;
    std::function<void(int64_t)> piece;
};

// Throws std::invalid_argument for an operation that is none, or a magnitude or kernel size that it cannot have.
AugmentWork augment_work(AugmentArgs args);

}  // namespace fastfeed
