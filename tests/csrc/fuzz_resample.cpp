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

// Of the whole image, cropped to the output.
std::vector<uint8_t> expected(std::vector<uint8_t> pixels, const ResampleImage& image, const ResampleArgs& args) {
    const Part &in = image.input, &out = image.output;
    const auto across = outputs_of(image.left, image.right, in.whole_width, out.whole_width, image.filter);
    const auto down = outputs_of(image.top, image.bottom, in.whole_height, out.whole_height, image.filter);
    const int64_t lost = in.whole_height - out.whole_height;
    if (lost > 0 && lost > 2 * (in.whole_width - out.whole_width)) {
        pixels = filtered(pixels, in.whole_height, in.whole_width, true, down);
        pixels = filtered(pixels, out.whole_height, in.whole_width, false, across);
    } else {
        pixels = filtered(pixels, in.whole_height, in.whole_width, false, across);
        pixels = filtered(pixels, in.whole_height, out.whole_width, true, down);
    }
    std::vector<uint8_t> cropped;
    for (int64_t y = out.top; y < out.top + args.out_h; ++y) {
        const auto row = pixels.begin() + (y * out.whole_width + out.left) * 3;
        cropped.insert(cropped.end(), row, row + 3 * args.out_w);
    }
    return cropped;
}

// -------------------------------------------------------------------------------------------- random batches

struct Batch {
    ResampleArgs args{};
    std::vector<std::vector<uint8_t>> wholes;
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

// The inputs [first, last) that outputs [begin, end) need, and now and then a few more.
std::pair<int64_t, int64_t> draw_part(const std::vector<Output>& all, int64_t begin, int64_t end, int64_t inputs,
                                      Random& random) {
    int64_t first = inputs, last = 0;
    for (int64_t i = begin; i < end; ++i) {
        first = std::min(first, all[i].first);
        last = std::max(last, all[i].first + static_cast<int64_t>(all[i].weights.size()));
    }
    const int64_t before = random.one_in(2) ? 0 : random.from(0, 9), behind = random.one_in(2) ? 0 : random.from(0, 9);
    return {std::max<int64_t>(first - before, 0), std::min(last + behind, inputs)};
}

Batch draw_batch(Random& random) {
    Batch batch;
    ResampleArgs& args = batch.args;
    args.out_h = random.one_in(20) ? random.from(64, 200) : draw_side(random);
    args.out_w = random.one_in(3) ? args.out_h : draw_side(random);
    const int64_t images = random.from(0, 3);
    const bool extremes = random.one_in(2);
    for (int64_t n = 0; n < images; ++n) {
        ResampleImage image{};
        Part &in = image.input, &out = image.output;
        image.filter = static_cast<Filter>(random.from(1, 3));
        in.whole_height = draw_side(random);
        in.whole_width = random.one_in(10) ? args.out_w : draw_side(random);
        std::tie(image.top, image.bottom) = draw_range(in.whole_height, random);
        std::tie(image.left, image.right) = draw_range(in.whole_width, random);
        out = {0, 0, args.out_h, args.out_w};
        image.height = in.whole_height;
        image.width = in.whole_width;
        if (random.one_in(2)) {  // a crop of the result, and no more in memory than it needs
            out.whole_height += random.one_in(4) ? 0 : draw_side(random);
            out.whole_width += random.one_in(4) ? 0 : draw_side(random);
            out.top = random.from(0, out.whole_height - args.out_h);
            out.left = random.from(0, out.whole_width - args.out_w);
            const auto down = outputs_of(image.top, image.bottom, in.whole_height, out.whole_height, image.filter);
            const auto across = outputs_of(image.left, image.right, in.whole_width, out.whole_width, image.filter);
            const auto rows = draw_part(down, out.top, out.top + args.out_h, in.whole_height, random);
            const auto columns = draw_part(across, out.left, out.left + args.out_w, in.whole_width, random);
            std::tie(in.top, in.left) = std::pair(rows.first, columns.first);
            std::tie(image.height, image.width) = std::pair(rows.second - in.top, columns.second - in.left);
        }
        std::vector<uint8_t> whole(in.whole_height * in.whole_width * 3);
        for (auto& byte : whole) byte = static_cast<uint8_t>(extremes ? 255 * random.from(0, 1) : random.from(0, 255));
        image.stride = 3 * image.width + (random.one_in(2) ? 0 : random.from(1, 70));
        batch.blocks.emplace_back(new uint8_t[(image.height - 1) * image.stride + 3 * image.width]);
        for (int64_t y = 0; y < image.height; ++y) {
            const auto row = whole.begin() + ((in.top + y) * in.whole_width + in.left) * 3;
            std::copy(row, row + 3 * image.width, batch.blocks.back().get() + y * image.stride);
        }
        image.pixels = batch.blocks.back().get();
        args.images.push_back(image);
        batch.wholes.push_back(std::move(whole));
    }
    return batch;
}

bool test_batch(uint64_t seed, std::map<std::string, int>& made) {
    Random random(seed);
    Batch batch = draw_batch(random);
    ResampleArgs& args = batch.args;
    const int64_t row = 3 * args.out_w, size = args.out_h * row, images = static_cast<int64_t>(args.images.size());
    std::vector<uint8_t> wanted;
    for (int64_t n = 0; n < images; ++n) {
        const ResampleImage& image = args.images[n];
        const auto pixels = expected(batch.wholes[n], image, args);
        wanted.insert(wanted.end(), pixels.begin(), pixels.end());
        ++made[vertical_first(image) ? "vertical first" : "horizontal first"];
        if (image.height < image.input.whole_height && image.width < image.input.whole_width) ++made["part"];
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
