// Random images and boxes, resized by every instruction set of the processor and by the pieces that a pool is given,
// against the formula written plainly, in 64 bits. Images and outputs are blocks of exactly their size, so that the
// address sanitizer sees whatever is read or written beside them.
//
// fuzz_resample SEED COUNT: batch number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include <map>
#include <string>
#include <tuple>

#include "resample.cpp"
#include "testing.h"

namespace fastfeed {
namespace {

// ------------------------------------------------------------------------------------- the formula, plainly

double filter_at(Filter filter, double x) {
    x = std::fabs(x);
    const auto sinc = [](double v) { return v == 0 ? 1.0 : std::sin(v * M_PI) / (v * M_PI); };
    switch (filter) {
        case Filter::bilinear: return x < 1 ? 1 - x : 0;
        case Filter::bicubic:
            if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
            return x < 2 ? (((x - 5) * x + 8) * x - 4) * -0.5 : 0;
        case Filter::lanczos: return x < 3 ? sinc(x) * sinc(x / 3) : 0;
    }
    return 0;
}

struct Output {
    int64_t first;
    std::vector<int64_t> weights;
};

std::vector<Output> outputs_of(double begin, double end, int64_t inputs, int64_t outputs, Filter filter) {
    const float low = static_cast<float>(begin), high = static_cast<float>(end);
    const double scale = static_cast<double>(high - low) / static_cast<double>(outputs);
    const double wide = scale < 1 ? 1 : scale;
    const double support = wide * (filter == Filter::bilinear ? 1 : filter == Filter::bicubic ? 2 : 3);
    std::vector<Output> all;
    for (int64_t i = 0; i < outputs; ++i) {
        const double middle = low + (static_cast<double>(i) + 0.5) * scale;
        const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(middle - support + 0.5));
        const int64_t last = std::min(inputs, static_cast<int64_t>(middle + support + 0.5));
        std::vector<double> values;
        double sum = 0;
        for (int64_t t = first; t < last; ++t) {
            values.push_back(filter_at(filter, (static_cast<double>(t) - middle + 0.5) * (1 / wide)));
            sum += values.back();
        }
        Output output{first, {}};
        for (const double value : values) {
            output.weights.push_back(static_cast<int64_t>(std::round(value / sum * 4194304)));
        }
        all.push_back(output);
    }
    return all;
}

// Pixels [height, width, 3], filtered by one pass.
std::vector<uint8_t> filtered(const std::vector<uint8_t>& in, int64_t height, int64_t width, bool rows,
                              const std::vector<Output>& outputs) {
    const int64_t out_h = rows ? static_cast<int64_t>(outputs.size()) : height;
    const int64_t out_w = rows ? width : static_cast<int64_t>(outputs.size());
    std::vector<uint8_t> out(out_h * out_w * 3);
    for (int64_t y = 0; y < out_h; ++y) {
        for (int64_t x = 0; x < out_w; ++x) {
            const Output& output = outputs[rows ? y : x];
            for (int64_t c = 0; c < 3; ++c) {
                int64_t sum = 1 << 21, magnitude = 1 << 21;
                for (size_t t = 0; t < output.weights.size(); ++t) {
                    const int64_t at = output.first + static_cast<int64_t>(t);
                    const int64_t byte = in[((rows ? at : y) * width + (rows ? x : at)) * 3 + c];
                    sum += byte * output.weights[t];
                    magnitude += 255 * std::abs(output.weights[t]);
                }
                if (magnitude > INT32_MAX) std::printf("a sum needs more than 32 bits\n"), std::exit(1);
                out[(y * out_w + x) * 3 + c] = static_cast<uint8_t>(std::clamp<int64_t>(sum >> 22, 0, 255));
            }
        }
    }
    return out;
}

std::vector<uint8_t> expected(const ResampleImage& image, const ResampleArgs& args) {
    std::vector<uint8_t> pixels;
    for (int64_t y = 0; y < image.height; ++y) {
        pixels.insert(pixels.end(), image.pixels + y * image.stride, image.pixels + y * image.stride + 3 * image.width);
    }
    const auto across = outputs_of(image.left, image.right, image.width, args.out_w, args.filter);
    const auto down = outputs_of(image.top, image.bottom, image.height, args.out_h, args.filter);
    const int64_t lost = image.height - args.out_h;
    if (lost > 0 && lost > 2 * (image.width - args.out_w)) {
        pixels = filtered(pixels, image.height, image.width, true, down);
        return filtered(pixels, args.out_h, image.width, false, across);
    }
    pixels = filtered(pixels, image.height, image.width, false, across);
    return filtered(pixels, image.height, args.out_w, true, down);
}

// -------------------------------------------------------------------------------------------- random batches

struct Batch {
    ResampleArgs args{};
    std::vector<std::unique_ptr<uint8_t[]>> blocks;
};

int64_t draw_side(Random& random) {
    if (random.one_in(100)) return random.from(200, 900);
    return random.one_in(3) ? random.from(1, 8) : random.from(1, 70);
}

std::pair<double, double> draw_range(int64_t side, Random& random) {
    const auto whole = static_cast<double>(side);
    if (random.one_in(3)) return {0, whole};
    if (random.one_in(3)) {
        const auto begin = static_cast<double>(random.from(0, side - 1));
        return {begin, static_cast<double>(random.from(static_cast<int64_t>(begin) + 1, side))};
    }
    while (true) {
        const double a = random.real(0, whole), b = random.one_in(4) ? whole : random.real(0, whole);
        const double size = random.one_in(4) ? random.real(0, 0.1) : whole;  // tiny ones too
        const double begin = std::min(a, b), end = std::min(std::max(a, b), begin + size);
        if (static_cast<float>(end) > static_cast<float>(begin)) return {begin, end};
    }
}

Batch draw_batch(Random& random) {
    Batch batch;
    ResampleArgs& args = batch.args;
    args.filter = static_cast<Filter>(random.from(1, 3));
    args.out_h = random.one_in(20) ? random.from(64, 200) : draw_side(random);
    args.out_w = random.one_in(3) ? args.out_h : draw_side(random);
    const int64_t images = random.from(0, 3);
    const bool extremes = random.one_in(2);
    for (int64_t n = 0; n < images; ++n) {
        ResampleImage image{};
        image.height = draw_side(random);
        image.width = random.one_in(10) ? args.out_w : draw_side(random);
        image.stride = 3 * image.width + (random.one_in(2) ? 0 : random.from(1, 70));
        const int64_t size = (image.height - 1) * image.stride + 3 * image.width;
        batch.blocks.emplace_back(new uint8_t[size]);
        for (int64_t i = 0; i < size; ++i) {
            batch.blocks.back()[i] = static_cast<uint8_t>(extremes ? 255 * random.from(0, 1) : random.from(0, 255));
        }
        image.pixels = batch.blocks.back().get();
        std::tie(image.top, image.bottom) = draw_range(image.height, random);
        std::tie(image.left, image.right) = draw_range(image.width, random);
        args.images.push_back(image);
    }
    return batch;
}

bool test_batch(uint64_t seed, std::map<std::string, int>& made) {
    Random random(seed);
    Batch batch = draw_batch(random);
    ResampleArgs& args = batch.args;
    const int64_t row = 3 * args.out_w, size = args.out_h * row, images = static_cast<int64_t>(args.images.size());
    std::vector<uint8_t> wanted;
    for (const auto& image : args.images) {
        const auto pixels = expected(image, args);
        wanted.insert(wanted.end(), pixels.begin(), pixels.end());
        ++made[vertical_first(image, args) ? "vertical first" : "horizontal first"];
    }
    const auto compare = [&](const char* name, const std::unique_ptr<uint8_t[]>& got) {
        ++made[name];
        if (std::equal(wanted.begin(), wanted.end(), got.get())) return true;
        return std::printf("%s differs, seed %" PRIu64 "\n", name, seed), false;
    };
    const auto by_rows = [&](const char* name, Rows rows) {
        const std::unique_ptr<uint8_t[]> dst(new uint8_t[images * size]);
        args.dst = dst.get();
        for (int64_t n = 0; n < images; ++n) {
            const int64_t cut = random.from(0, args.out_h);
            if (cut > 0) rows(args, n, 0, cut);
            if (cut < args.out_h) rows(args, n, cut, args.out_h);
        }
        return compare(name, dst);
    };
    if (!by_rows("baseline", baseline::resample_rows)) return false;
#if defined(__x86_64__)
    if (simd() >= Simd::avx2 && !by_rows("AVX2", avx2::resample_rows)) return false;
    if (simd() >= Simd::avx512_vnni && !by_rows("AVX-512 with VNNI", avx512_vnni::resample_rows)) return false;
#endif
    const std::unique_ptr<uint8_t[]> dst(new uint8_t[images * size]);
    args.dst = dst.get();
    const ResampleWork work = resample_work(args, static_cast<int>(random.from(1, 8)));
    Pool(2).run(work.pieces, work.piece);
    return compare("pieces", dst);
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    std::map<std::string, int> made;
    if (!fuzz(argc, argv, [&](uint64_t seed) { return test_batch(seed, made); })) return 1;
    for (const auto& [name, times] : made) std::printf("%s: %d\n", name.c_str(), times);
    return 0;
}
