// Random batches through every way that the last pass is made: each instruction set of the processor, the pieces that
// a pool is given, and the GPU's tiles and pixels as loops on the host. All must give the bits of the
// formula in expected.h. Sources, outputs, parameters and tiles are blocks of exactly their size, so
// that the address sanitizer sees whatever is read or written beside them.
//
// fuzz_finish SEED COUNT: batch number i is drawn from SEED + i, and a failure prints the seed that repeats it.
#include <climits>
#include <cstdlib>
#include <functional>
#include <memory>
#include <numeric>
#include <string>

#include "expected.h"
#include "roundings.h"
#include "testing.h"
#ifndef PROCESSOR_ONLY  // a third of the time to compile
#include "finish_gpu.h"
#endif

namespace fastfeed {
namespace {

// ------------------------------------------------------------------------------------- random batches

struct Batch {
    FinishArgs args{};
    std::unique_ptr<uint8_t[]> source;
    std::unique_ptr<SampleParameters[]> parameters;
};

void draw_strides(FinishArgs& a, Random& random) {
    const int64_t gap = random.one_in(2) ? 0 : random.from(1, 20);
    switch (random.from(0, 7)) {
        case 0:  // [N, C, H, W]
            a.stride_w = 1;
            a.stride_h = a.w + gap;
            a.stride_c = a.h * a.stride_h + gap;
            a.stride_n = a.c * a.stride_c + gap;
            return;
        case 1:  // [N, W, H, C]
            a.stride_c = 1;
            a.stride_h = a.c + gap;
            a.stride_w = a.h * a.stride_h + gap;
            a.stride_n = a.w * a.stride_w;
            return;
        case 2:  // any steps: expanded, overlapping
            a.stride_c = random.from(0, 5);
            a.stride_w = random.any<int64_t>({0, a.c, random.from(0, 50)});
            a.stride_h = random.any<int64_t>({0, 8, random.from(0, 900)});
            a.stride_n = random.any<int64_t>({0, 8, random.from(0, 900)});
            return;
        case 3:  // every second channel's byte, or pixels with a gap
            a.stride_c = random.from(1, 2);
            a.stride_w = a.c * a.stride_c + gap;
            a.stride_h = a.w * a.stride_w;
            a.stride_n = a.h * a.stride_h;
            return;
        default:  // rows with a gap, or none; of the size that the GPU's groups can take, or another
            a.stride_c = 1;
            a.stride_w = a.c;
            a.stride_h = a.w * a.c + (random.one_in(2) ? gap : gap / 8 * 8);
            a.stride_n = a.h * a.stride_h + random.any<int64_t>({0, 8, 24, gap});
    }
}

Rectangle draw_rectangle(const FinishArgs& a, Random& random) {
    const auto anywhere = [&](int64_t size) {
        if (random.one_in(6)) return random.any<int32_t>({INT_MIN, INT_MAX, INT_MIN + 1, INT_MAX - 1, -1, 0, 1, 8});
        return static_cast<int32_t>(random.from(-size / 2 - 1, size + 1));
    };
    const int32_t h = static_cast<int32_t>(a.h), w = static_cast<int32_t>(a.w);
    if (random.one_in(6)) return {};
    if (random.one_in(6)) return {0, 0, h, w};
    if (random.one_in(3)) return {anywhere(h), anywhere(w), anywhere(h), anywhere(w)};
    const auto top = static_cast<int32_t>(random.from(0, h)), left = static_cast<int32_t>(random.from(0, w));
    return {top, left, static_cast<int32_t>(random.from(0, h - top)), static_cast<int32_t>(random.from(0, w - left))};
}

SampleParameters draw_parameters(const FinishArgs& a, int64_t n, Random& random) {
    SampleParameters s{};
    s.flip = static_cast<int32_t>(random.from(0, 3));
    s.noise = random.any<int32_t>({0, 1, -1});
    s.noise_key[0] = static_cast<uint32_t>(random.from(0, UINT_MAX));
    s.noise_key[1] = static_cast<uint32_t>(random.from(0, UINT_MAX));
    if (random.one_in(4)) s.erase = draw_rectangle(a, random);
    if (random.one_in(2)) s.cut = draw_rectangle(a, random);
    s.partner = static_cast<int32_t>(random.one_in(4) ? n : random.from(0, a.n - 1));
    const auto weight = random.real<float>(0, 1);
    s.weight = random.any<float>({1, 1, 0, 0.5f, 0x1p-24f, 0x1.fffffep-1f, 0x1p-149f, 0x1p-130f, weight});
    return s;
}

Normalizer draw_normalizer(int channels, Random& random) {
    float mean[4], std[4];
    const int64_t kind = random.from(0, 9);
    for (int c = 0; c < channels; ++c) {
        const auto level = static_cast<float>(random.from(0, 255)) / 255;
        mean[c] = random.any<float>({0, 0.5f, random.real<float>(-0.5, 1.5), level});
        std[c] = random.real<float>(0.1, 0.5);
        if (kind == 1) std[c] = std::exp(random.real<float>(-30, 30));  // halves overflow, and become subnormal
        if (kind == 2) std[c] = random.real<float>(1e38, 3e38);         // 1 / std is subnormal: not fused
    }
    Normalizer normalizer = make_normalizer(mean, std, channels, kind == 4 ? 1 / 255.0f : kind == 5 ? 1 : 0);
    if (kind == 3) normalizer.fused = false;
    return normalizer;
}

Batch draw_batch(Random& random) {
    Batch batch;
    FinishArgs& a = batch.args;
    a.c = random.any<int>({1, 3, 4});
    a.n = random.one_in(20) ? random.from(0, 1) : random.from(2, 5);
    a.h = random.one_in(20) ? 0 : random.one_in(20) ? 67 : random.from(1, 8);
    a.w = random.any<int64_t>({random.from(0, 17), random.from(0, 100), 8 * random.from(1, 9), 48 * random.from(1, 3),
                               16 * random.from(1, 4) + random.from(-1, 1)});
    if (random.one_in(40)) a.w = 264;  // more groups in a row than a warp makes
    a.output = random.any<Output>({Output::float32, Output::float16, Output::bfloat16});
    a.channels_last = random.one_in(2);
    a.normalizer = draw_normalizer(a.c, random);
    for (float& value : a.fill) value = random.any<float>({0, random.real<float>(-3, 3), 70000, -1e-6f});

    draw_strides(a, random);
    if (random.one_in(2)) {  // for the GPU's groups
        a.w = 8 * (a.w / 8 + 1);
        a.stride_c = 1;
        a.stride_w = a.c;
        a.stride_h = a.w * a.c + 8 * random.from(0, 2);
        a.stride_n = a.h * a.stride_h + 8 * random.from(0, 2);
    } else if (random.one_in(4)) {  // the stride of a dimension of size 1 means nothing
        if (a.n == 1) a.stride_n = int64_t{1} << 40;
        if (a.h == 1) a.stride_h = int64_t{1} << 40;
        if (a.w == 1) a.stride_w = int64_t{1} << 40;
        if (a.c == 1) a.stride_c = int64_t{1} << 40;
    }
    const int64_t offset = random.one_in(3) ? random.from(0, 15) : 0;
    int64_t extent = 0;
    if (a.n * a.h * a.w != 0) {
        extent = (a.n - 1) * a.stride_n + (a.h - 1) * a.stride_h + (a.w - 1) * a.stride_w + (a.c - 1) * a.stride_c + 1;
    }
    batch.source.reset(new uint8_t[offset + extent]);
    const int64_t step = random.one_in(4) ? 255 : 1;
    for (int64_t i = 0; i < offset + extent; ++i) {
        batch.source[i] = static_cast<uint8_t>(step * random.from(0, 255 / step));
    }
    a.src = batch.source.get() + offset;
    if (!random.one_in(5)) {
        batch.parameters.reset(new SampleParameters[a.n]);
        for (int64_t n = 0; n < a.n; ++n) batch.parameters[n] = draw_parameters(a, n, random);
        a.parameters = batch.parameters.get();
    }
    return batch;
}

// ---------------------------------------------------------------------------------------------- the ways

using Make = std::function<bool(const FinishArgs&, Random&)>;  // false: this way does not take such a batch
struct Way {
    const char* name;
    Make make;
    int64_t made = 0;
};

// All rows of a batch, in pieces that end anywhere.
template <class Choose>
Make rows_way(Form form, Choose choose, float wide = 1, bool subnormal = true) {
    return [=](const FinishArgs& a, Random& random) {
        if (form != Form::divide && !a.normalizer.fused) return false;
        if (form == Form::single && !a.normalizer.single[static_cast<int>(a.output)]) return false;
        if (!subnormal && !never_subnormal(a)) return false;
        const Rows rows = choose(a, a.normalizer.factor != 0 ? Form::multiply : form);
        const Lanes lanes(a.normalizer, wide);
        const int64_t total = a.w == 0 ? 0 : a.n * a.h;
        for (int64_t begin = 0, end; begin < total; begin = end) {
            end = random.from(begin + 1, total);
            rows(a, lanes, random.one_in(2), begin, end);
        }
        return true;
    };
}

bool in_pieces(const FinishArgs& a, Random& random) {
    const FinishWork work = finish_work(a);
    std::vector<int64_t> order(work.pieces);
    std::iota(order.begin(), order.end(), 0);
    random.shuffle(order.begin(), order.end());
    for (const int64_t i : order) work.piece(i);
    return true;
}

#ifndef PROCESSOR_ONLY
// What finish_cuda.cu launches. The threads of a warp go one by one, in any order, between the places where they wait
// for each other.
struct HostLaunch {
    Random& random;

    template <class T, int C, bool CHANNELS_LAST>
    void tiles(const FinishArgs& a) const {
        for (int64_t row = 0; row < a.n * a.h; ++row) {  // a GPU's loads of 8 bytes must lie at multiples of 8
            const auto* src = a.src + row / a.h * a.stride_n + row % a.h * a.stride_h;
            if (reinterpret_cast<uintptr_t>(src) % 8 != 0) std::abort();
        }
        using Tile = WarpTile<T, C, CHANNELS_LAST>;
        const auto tile = std::make_unique<Tile>();
        int lanes[WARP];
        std::iota(lanes, lanes + WARP, 0);
        for (int64_t first = 0; first < a.h * (a.w / GROUP); first += WARP) {
            for (int64_t n = 0; n < a.n; ++n) {
                random.shuffle(lanes, lanes + WARP);
                std::memset(static_cast<void*>(tile.get()), 0xCD, sizeof(Tile));
                for (const int lane : lanes) tile->make(a, n, static_cast<uint32_t>(first), lane);
                for (const int lane : lanes) tile->write(a, n, static_cast<uint32_t>(first), lane);
            }
        }
    }

    template <int C>
    void pixels(const FinishArgs& a) const {
        for (int64_t i = a.n * a.h * a.w; i-- > 0;) make_pixel<C>(a, i);
    }
};

bool in_tiles(const FinishArgs& a, Random& random) { return in_groups(a) && dispatch_finish(a, HostLaunch{random}); }

bool pixel_by_pixel(const FinishArgs& a, Random& random) {
    const HostLaunch launch{random};
    if (!in_groups(a)) return dispatch_finish(a, launch);
    a.c == 1 ? launch.pixels<1>(a) : a.c == 3 ? launch.pixels<3>(a) : launch.pixels<4>(a);
    return true;
}

// What the fast way refuses, at sizes that no test can make.
bool test_groups() {
    FinishArgs a{};
    a.n = 1, a.h = int64_t{1} << 20, a.w = int64_t{1} << 13, a.c = 4;  // 2^30 groups
    a.stride_c = 1, a.stride_w = 4, a.stride_h = 4 * a.w, a.stride_n = a.h * a.stride_h;
    a.normalizer.fused = true;
    const bool right = in_groups(a);
    a.h *= 2;
    return right && !in_groups(a);
}

// Shared memory has 32 banks of 4 bytes, 8 pieces in a row. Threads store 8 pieces at a time, one each, and those must
// meet every bank once, or they are stored one after the other.
struct CheckBanks {
    int& right;  // kinds of output

    template <class T, int C, bool CHANNELS_LAST>
    void tiles(const FinishArgs& a) const {
        using Tile = WarpTile<T, C, CHANNELS_LAST>;
        const auto tile = std::make_unique<Tile>();
        const int pieces = sizeof(tile->piece) / sizeof(tile->piece[0]);
        uint32_t met[WARP / 8][Tile::PIECES]{};  // by each 8 threads' stores: a bit for every 4 banks
        for (int lane = 0; lane < WARP; ++lane) {
            std::memset(static_cast<void*>(tile.get()), 0xFF, sizeof(Tile));
            tile->make(a, 0, 0, lane);
            for (int i = 0, stored = 0; i < pieces; ++i) {
                if (tile->piece[i].word[0] == 0) met[lane / 8][stored++] |= 1u << i % 8;
            }
        }
        bool all = true;
        for (const auto& stores : met) {
            for (const uint32_t banks : stores) all = all && banks == 255;
        }
        right += all;
    }

    template <int C>
    void pixels(const FinishArgs&) const {}
};

bool test_banks() {
    const std::vector<uint8_t> black(4 * WARP * GROUP);
    const float mean[4] = {}, std[4] = {1, 1, 1, 1};
    int right = 0;
    for (const int c : {1, 3, 4}) {
        for (const Output output : {Output::float32, Output::float16, Output::bfloat16}) {
            FinishArgs a{};
            a.n = 1, a.h = 1, a.w = WARP * GROUP, a.c = c, a.output = output, a.channels_last = true;
            a.stride_c = 1, a.stride_w = c, a.stride_h = a.stride_n = a.w * c;
            a.src = black.data(), a.normalizer = make_normalizer(mean, std, c);
            dispatch_finish(a, CheckBanks{right});
        }
    }
    return right == 9;
}
#endif

std::vector<Way> ways() {
    const auto baseline_rows = [](const FinishArgs& a, Form form) { return baseline::rows_for(a, form); };
    std::vector<Way> result{
#ifndef PROCESSOR_ONLY
                            {"GPU, in tiles", in_tiles},
                            {"GPU, pixel by pixel", pixel_by_pixel},
#endif
                            {"pieces", in_pieces},
                            {"baseline, dividing", rows_way(Form::divide, baseline_rows)},
                            {"baseline", rows_way(Form::fused, baseline_rows)},
                            {"baseline, single", rows_way(Form::single, baseline_rows)}};
#if defined(__x86_64__)
    const auto avx2_rows = [](const FinishArgs& a, Form form) { return avx2::rows_for(a, form); };
    const auto avx512_rows = [](const FinishArgs& a, Form form) { return avx512::rows_for(a, form); };
    if (simd() >= Simd::avx2) {
        result.push_back({"AVX2, dividing", rows_way(Form::divide, avx2_rows)});
        result.push_back({"AVX2", rows_way(Form::fused, avx2_rows)});
        result.push_back({"AVX2, single", rows_way(Form::single, avx2_rows)});
    }
    if (simd() >= Simd::avx512) {
        result.push_back({"AVX-512, dividing", rows_way(Form::divide, avx512_rows, WIDE)});
        result.push_back({"AVX-512", rows_way(Form::fused, avx512_rows, WIDE)});
        result.push_back({"AVX-512, single", rows_way(Form::single, avx512_rows, WIDE)});
    }
    const auto bf16_rows = [](const FinishArgs& a, Form form) { return avx512_bf16::rows_for(a, form); };
    if (simd() >= Simd::avx512_bf16) {
        result.push_back({"AVX-512 with BF16, dividing", rows_way(Form::divide, bf16_rows, WIDE, false)});
        result.push_back({"AVX-512 with BF16", rows_way(Form::fused, bf16_rows, WIDE, false)});
        result.push_back({"AVX-512 with BF16, single", rows_way(Form::single, bf16_rows, WIDE, false)});
    }
#endif
    return result;
}

// Prints the first difference.
bool equal(const FinishArgs& a, const uint8_t* got, const std::vector<uint8_t>& expected, const char* way) {
    const int64_t size = output_size(a);
    for (int64_t i = 0; i < static_cast<int64_t>(expected.size()); i += size) {
        if (std::memcmp(got + i, &expected[i], size) == 0) continue;
        uint32_t got_bits = 0, expected_bits = 0;
        std::memcpy(&got_bits, got + i, size);
        std::memcpy(&expected_bits, &expected[i], size);
        std::printf("%s: value %" PRId64 " is %#x instead of %#x\n", way, i / size, got_bits, expected_bits);
        return false;
    }
    return true;
}

bool test_batch(uint64_t seed, std::vector<Way>& all) {
    Random random(seed);
    Batch batch = draw_batch(random);
    FinishArgs& a = batch.args;
    const std::vector<uint8_t> expected = expected_bytes(a);
    // Of the alignment that the output type has, or of a GPU's stores.
    const int64_t offset = random.one_in(8) ? output_size(a) * random.from(0, 3) : 0;
    const std::unique_ptr<uint8_t[]> output(new uint8_t[offset + expected.size()]);
    a.dst = output.get() + offset;
    for (Way& way : all) {
        std::memset(a.dst, 0xAB, expected.size());
        if (!way.make(a, random)) continue;
        ++way.made;
        if (equal(a, output.get() + offset, expected, way.name)) continue;
        std::printf("seed %" PRIu64 ": [%" PRId64 ", %" PRId64 ", %" PRId64 ", %d], strides %" PRId64 " %" PRId64
                    " %" PRId64 " %" PRId64 ", output %d, %s, %s\n",
                    seed, a.n, a.h, a.w, a.c, a.stride_n, a.stride_h, a.stride_w, a.stride_c,
                    static_cast<int>(a.output), a.channels_last ? "channels-last" : "planes",
                    a.normalizer.fused ? "fused" : "not fused");
        return false;
    }
    return true;
}

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    using namespace fastfeed;
    print_at_once();
    if (!test_roundings()) return 1;
#ifndef PROCESSOR_ONLY
    if (!test_groups()) return std::printf("in_groups is wrong\n"), 1;
    if (!test_banks()) return std::printf("threads' stores into a tile meet in one bank of shared memory\n"), 1;
#endif
    std::vector<Way> all = ways();
    if (!fuzz(argc, argv, [&](uint64_t seed) { return test_batch(seed, all); })) return 1;
    for (const Way& way : all) std::printf("%s: %" PRId64 "\n", way.name, way.made);
    return 0;
}
