#include "augment.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>

#include "bilinear.h"
#include "blur.h"
#include "hue.h"

namespace fastfeed {
namespace {

constexpr double PI = 3.14159265358979323846;

struct Image {
    uint8_t* data;
    int64_t h, w;

    int64_t size() const { return h * w * 3; }
    int64_t row_size() const { return w * 3; }
};

using Scratch = std::vector<uint8_t>;
using Table = std::array<uint8_t, 256>;
using Histogram = std::array<int64_t, 256>;

const uint8_t* copy_of(const Image& image, Scratch& scratch) {
    scratch.resize(image.size() + 1);  // warp_bilinear reads one more
    std::copy_n(image.data, image.size(), scratch.data());
    return scratch.data();
}

// Point operations: what becomes of each level.

template <class Function>
Table make_table(const Function& function) {
    Table table;
    for (int level = 0; level < 256; ++level) table[level] = static_cast<uint8_t>(function(level));
    return table;
}

void look_up(const Image& image, const Table& red, const Table& green, const Table& blue) {
    for (uint8_t *p = image.data, *end = p + image.size(); p != end; p += 3) {
        p[0] = red[p[0]];
        p[1] = green[p[1]];
        p[2] = blue[p[2]];
    }
}

void look_up(const Image& image, const Table& table) { look_up(image, table, table, table); }

// A step from `from` towards `to`, or beyond it for factors above 1. In fp32 and cut off, not rounded, as Pillow does.
inline uint8_t blend(uint8_t from, uint8_t to, float factor) {
    const float difference = static_cast<float>(static_cast<int>(to) - static_cast<int>(from));
    float value = static_cast<float>(from) + factor * difference;
    value = value > 0.0f ? value : 0.0f;
    value = value < 255.0f ? value : 255.0f;
    return static_cast<uint8_t>(static_cast<int>(value));
}

// ITU-R 601-2 luma, in 16 bits of fixed point.
inline uint8_t luma(const uint8_t* rgb) {
    return static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

void grayscale(const Image& image) {
    for (uint8_t *p = image.data, *end = p + image.size(); p != end; p += 3) p[0] = p[1] = p[2] = luma(p);
}

void brightness(const Image& image, float factor) {
    look_up(image, make_table([=](int level) { return blend(0, static_cast<uint8_t>(level), factor); }));
}

void contrast(const Image& image, float factor) {
    int64_t sum = 0;
    for (const uint8_t *p = image.data, *end = p + image.size(); p != end; p += 3) sum += luma(p);
    const double mean = static_cast<double>(sum) / static_cast<double>(image.h * image.w);
    const auto gray = static_cast<uint8_t>(mean + 0.5);
    look_up(image, make_table([=](int level) { return blend(gray, static_cast<uint8_t>(level), factor); }));
}

void saturation(const Image& image, float factor, Scratch& scratch) {
    // A row of luma for each channel, so that the loop that does the arithmetic has no strides.
    const int64_t size = image.row_size();
    scratch.resize(size);
    uint8_t* __restrict gray = scratch.data();
    for (int64_t y = 0; y < image.h; ++y) {
        uint8_t* __restrict row = image.data + y * size;
        for (int64_t i = 0; i < size; i += 3) gray[i] = gray[i + 1] = gray[i + 2] = luma(row + i);
        for (int64_t i = 0; i < size; ++i) row[i] = blend(gray[i], row[i], factor);
    }
}

void sharpness(const Image& image, float factor, Scratch& scratch) {
    if (image.h < 3 || image.w < 3) return;  // Pillow's filters leave such images alone
    constexpr float side = 1.0f / 13.0f, centre = 5.0f / 13.0f;
    const int64_t size = image.row_size();
    const uint8_t* source = copy_of(image, scratch);
    for (int64_t y = 1; y < image.h - 1; ++y) {  // nor do they change the border
        const uint8_t *here = source + y * size, *above = here - size, *below = here + size;
        uint8_t* __restrict out = image.data + y * size;
        for (int64_t i = 3; i < size - 3; ++i) {
            float sum = 0.5f;  // in Pillow's order, for its roundings
            sum += below[i - 3] * side + below[i] * side + below[i + 3] * side;
            sum += here[i - 3] * side + here[i] * centre + here[i + 3] * side;
            sum += above[i - 3] * side + above[i] * side + above[i + 3] * side;
            out[i] = blend(static_cast<uint8_t>(static_cast<int>(sum)), here[i], factor);
        }
    }
}

std::array<Histogram, 3> histograms(const Image& image) {
    std::array<Histogram, 3> counts{};
    for (const uint8_t *p = image.data, *end = p + image.size(); p != end; p += 3) {
        for (int c = 0; c < 3; ++c) ++counts[c][p[c]];
    }
    return counts;
}

Table autocontrast_table(const Histogram& counts) {
    const auto occurs = [](int64_t count) { return count != 0; };
    const auto low = std::find_if(counts.begin(), counts.end(), occurs) - counts.begin();
    const auto high = counts.rend() - std::find_if(counts.rbegin(), counts.rend(), occurs) - 1;
    if (high <= low) return make_table([](int level) { return level; });
    const double scale = 255.0 / static_cast<double>(high - low), offset = static_cast<double>(-low) * scale;
    return make_table([=](int level) { return std::clamp(static_cast<int>(level * scale + offset), 0, 255); });
}

Table equalize_table(const Histogram& counts) {
    int64_t total = 0, last = 0, levels = 0;
    for (const int64_t count : counts) {
        if (count == 0) continue;
        total += count;
        last = count;
        ++levels;
    }
    const int64_t step = (total - last) / 255;
    if (levels <= 1 || step == 0) return make_table([](int level) { return level; });
    int64_t below = step / 2;
    Table table;
    for (int level = 0; level < 256; ++level) {
        table[level] = static_cast<uint8_t>(std::min<int64_t>(below / step, 255));
        below += counts[level];
    }
    return table;
}

template <class MakeTable>
void look_up_by_histogram(const Image& image, const MakeTable& make) {
    const auto counts = histograms(image);
    look_up(image, make(counts[0]), make(counts[1]), make(counts[2]));
}

void hue(const Image& image, float turns) {
    turn_hue(image.data, image.h * image.w, static_cast<uint8_t>(static_cast<int>(turns * 255.0)));
}

// Geometry: the pixel at (x, y) comes from (a[0] x + a[1] y + a[2], a[3] x + a[4] y + a[5]), where centres of pixels
// lie at halves; the nearest one, or one made of those around it, or `fill` outside of the image.

using Matrix = std::array<double, 6>;
using Fill = std::array<uint8_t, 3>;

// 16.16 fixed point.
int64_t to_pixel(int64_t coordinate, int64_t) { return coordinate >> 16; }

// -1 outside, before the conversion: coordinates may be larger than any integer.
int64_t to_pixel(double coordinate, int64_t size) {
    return coordinate >= 0 && coordinate < static_cast<double>(size) ? static_cast<int64_t>(coordinate) : -1;
}

// `x` and `y` belong to the first pixel. Sums, and no products: their roundings are Pillow's.
template <class Coordinate>
void walk(const Image& image, const uint8_t* source, Coordinate x, Coordinate y, const std::array<Coordinate, 4>& step,
          const Fill& fill) {
    uint8_t* out = image.data;
    for (int64_t row = 0; row < image.h; ++row, x += step[1], y += step[3]) {
        Coordinate from_x = x, from_y = y;
        for (int64_t column = 0; column < image.w; ++column, from_x += step[0], from_y += step[2], out += 3) {
            const int64_t i = to_pixel(from_x, image.w), j = to_pixel(from_y, image.h);
            const bool inside = i >= 0 && i < image.w && j >= 0 && j < image.h;
            std::memcpy(out, inside ? source + (j * image.w + i) * 3 : fill.data(), 3);
        }
    }
}

void warp_nearest(const Image& image, const Matrix& a, const Fill& fill, Scratch& scratch) {
    const uint8_t* source = copy_of(image, scratch);
    const double x = a[2] + a[0] * 0.5 + a[1] * 0.5, y = a[5] + a[3] * 0.5 + a[4] * 0.5;
    const auto fixed = [](double value) { return static_cast<int64_t>(std::floor(value * 65536.0 + 0.5)); };
    const auto fits = [&](int64_t column, int64_t row) {
        return std::fabs(static_cast<double>(column) * a[0] + static_cast<double>(row) * a[1] + a[2]) < 32768.0 &&
               std::fabs(static_cast<double>(column) * a[3] + static_cast<double>(row) * a[4] + a[5]) < 32768.0;
    };
    // Pillow works in fixed point if it can, except where the axes stay apart.
    const bool apart = a[1] == 0 && a[3] == 0;
    if (!apart && fits(0, 0) && fits(image.w, 0) && fits(0, image.h) && fits(image.w, image.h)) {
        walk<int64_t>(image, source, fixed(x), fixed(y), {fixed(a[0]), fixed(a[1]), fixed(a[3]), fixed(a[4])}, fill);
    } else {
        walk<double>(image, source, x, y, {a[0], a[1], a[3], a[4]}, fill);
    }
}

void warp(const Image& image, const Matrix& a, const Fill& fill, bool bilinear, Scratch& scratch) {
    if (!bilinear) return warp_nearest(image, a, fill, scratch);
    warp_bilinear(copy_of(image, scratch), image.data, image.h, image.w, a, fill);
}

double degrees(double angle) { return angle * (180.0 / PI); }
double radians(double angle) { return angle * (PI / 180.0); }

// torchvision shears by an angle, in degrees, whose tangent the magnitude is.
double shear_angle(float magnitude) { return radians(degrees(std::atan(static_cast<double>(magnitude)))); }

Matrix shear_x_matrix(float magnitude) { return {1, std::tan(shear_angle(magnitude)), 0, 0, 1, 0}; }

Matrix shear_y_matrix(float magnitude) {
    const double angle = shear_angle(magnitude);
    return {1, 0, 0, std::sin(angle) / std::cos(angle), 1, 0};
}

// To 15 decimals, halves to even, as Python's round(value, 15): a product alone may round to a half that it is not.
double round_15(double value) {
    const double scaled = value * 1e15, error = std::fma(value, 1e15, -scaled);
    double whole = std::nearbyint(scaled);
    const double rest = (scaled - whole) + error;
    if (rest > 0.5) whole += 1;
    if (rest < -0.5) whole -= 1;
    return whole / 1e15;
}

Matrix rotation_matrix(float magnitude, const Image& image) {
    double angle = std::fmod(static_cast<double>(magnitude), 360.0);
    if (angle < 0) angle += 360.0;
    angle = -radians(angle);
    const double cosine = round_15(std::cos(angle)), sine = round_15(std::sin(angle));
    const double x = static_cast<double>(image.w) / 2, y = static_cast<double>(image.h) / 2;
    return {cosine, sine, cosine * -x + sine * -y + x, -sine, cosine, -sine * -x + cosine * -y + y};
}

void horizontal_flip(const Image& image) {
    for (int64_t y = 0; y < image.h; ++y) {
        uint8_t* row = image.data + y * image.row_size();
        for (uint8_t *left = row, *right = row + image.row_size() - 3; left < right; left += 3, right -= 3) {
            std::swap_ranges(left, left + 3, right);
        }
    }
}

void vertical_flip(const Image& image) {
    const int64_t size = image.row_size();
    for (int64_t y = 0; y < image.h / 2; ++y) {
        uint8_t* row = image.data + y * size;
        std::swap_ranges(row, row + size, image.data + (image.h - 1 - y) * size);
    }
}

void operate(Operation operation, float magnitude, const int32_t* kernel_size, const Image& image, const Fill& fill,
             bool bilinear, Scratch& scratch) {
    switch (operation) {
        case Operation::horizontal_flip: return horizontal_flip(image);
        case Operation::vertical_flip: return vertical_flip(image);
        case Operation::grayscale: return grayscale(image);
        case Operation::brightness: return brightness(image, magnitude);
        case Operation::contrast: return contrast(image, magnitude);
        case Operation::saturation: return saturation(image, magnitude, scratch);
        case Operation::hue: return hue(image, magnitude);
        case Operation::sharpness: return sharpness(image, magnitude, scratch);
        case Operation::posterize: {
            const int mask = 0x100 - (0x100 >> static_cast<int>(magnitude));
            return look_up(image, make_table([=](int level) { return level & mask; }));
        }
        case Operation::solarize:
            return look_up(image, make_table([=](int level) {
                return static_cast<float>(level) < magnitude ? level : 255 - level;
            }));
        case Operation::autocontrast: return look_up_by_histogram(image, autocontrast_table);
        case Operation::equalize: return look_up_by_histogram(image, equalize_table);
        case Operation::invert: return look_up(image, make_table([](int level) { return 255 - level; }));
        case Operation::shear_x: return warp(image, shear_x_matrix(magnitude), fill, bilinear, scratch);
        case Operation::shear_y: return warp(image, shear_y_matrix(magnitude), fill, bilinear, scratch);
        // By whole pixels, which interpolation leaves as they are.
        case Operation::translate_x: return warp_nearest(image, {1, 0, -std::trunc(magnitude), 0, 1, 0}, fill, scratch);
        case Operation::translate_y: return warp_nearest(image, {1, 0, 0, 0, 1, -std::trunc(magnitude)}, fill, scratch);
        case Operation::rotate: return warp(image, rotation_matrix(magnitude, image), fill, bilinear, scratch);
        case Operation::gaussian_blur:
            return gaussian_blur(image.data, image.h, image.w, kernel_size[0], kernel_size[1], magnitude);
        case Operation::nothing:
        case Operation::count: return;
    }
}

void check(uint8_t kind, float magnitude) {
    if (kind >= static_cast<uint8_t>(Operation::count)) {
        throw std::invalid_argument("augment: kind is " + std::to_string(kind) + "; expected 0 to " +
                                    std::to_string(static_cast<int>(Operation::count) - 1));
    }
    const auto expect = [=](bool right, const char* expected) {
        if (right) return;
        throw std::invalid_argument("augment: magnitude is " + std::to_string(magnitude) + " for kind " +
                                    std::to_string(kind) + "; expected " + expected);
    };
    expect(std::isfinite(magnitude), "a finite number");
    if (kind == static_cast<uint8_t>(Operation::posterize)) expect(magnitude >= 1 && magnitude < 9, "1 to 8 bits");
    if (kind == static_cast<uint8_t>(Operation::hue)) expect(std::fabs(magnitude) <= 0.5f, "-0.5 to 0.5");
    if (kind == static_cast<uint8_t>(Operation::gaussian_blur)) expect(magnitude > 0, "more than 0");
}

void check_kernel(const int32_t* size, int64_t h, int64_t w) {
    const auto fits = [](int32_t size, int64_t side) {  // any image without pixels
        return size > 0 && size % 2 == 1 && size / 2 < std::max<int64_t>(side, 1);
    };
    if (fits(size[0], h) && fits(size[1], w)) return;
    throw std::invalid_argument("augment: the kernel of a blur has height " + std::to_string(size[0]) + " and width " +
                                std::to_string(size[1]) + ", and the images " + std::to_string(h) + " and " +
                                std::to_string(w) + "; expected odd numbers, less than twice the images'");
}

}  // namespace

AugmentWork augment_work(AugmentArgs args) {
    for (size_t i = 0; i < args.kind.size(); ++i) {
        check(args.kind[i], args.magnitude[i]);
        if (args.kind[i] == static_cast<uint8_t>(Operation::gaussian_blur)) {
            check_kernel(&args.kernel_size[2 * i], args.h, args.w);
        }
    }
    // A pool's function is copied; what it needs is not.
    const auto shared = std::make_shared<const AugmentArgs>(std::move(args));
    return {shared->h * shared->w == 0 ? 0 : shared->n, [shared](int64_t n) {
                const AugmentArgs& a = *shared;
                const Image image{a.images + n * a.h * a.w * 3, a.h, a.w};
                Scratch scratch;
                for (int64_t i = n * a.operations; i < (n + 1) * a.operations; ++i) {
                    const auto operation = static_cast<Operation>(a.kind[i]);
                    operate(operation, a.magnitude[i], &a.kernel_size[2 * i], image, a.fill, a.bilinear, scratch);
                }
            }};
}

}  // namespace fastfeed
