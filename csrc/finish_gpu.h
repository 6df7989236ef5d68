// How the GPU goes through a batch. Written so that a loop on the processor can go the same way: the tests do, and so
// check every index without a GPU.
//
// Groups. A thread makes GROUP = 8 pixels that follow each other in an output row: 8 * C bytes in, in loads of 8 bytes,
// and 16 * C or 32 * C bytes out. That wants rows of whole groups and pixels that lie side by side; other batches are
// made pixel by pixel. The threads of a warp make groups that follow each other in the sample, in a tile of shared
// memory that they then write together, 16 bytes per thread and 512 in a row: written directly, the threads' stores
// would lie 16 * C bytes apart, half a memory sector each.
//
// The work: with 3 channels, bf16 and mixing a value takes 2 bytes read (its own and the partner's) and 2 written, and
// about 17 instructions. At 4.3 TB/s and 1.7 GHz an H200 has time for 30 per value, so the loads and stores must not
// take many: hence groups, and the conversion of bytes without the slow integer-to-float unit.
#pragma once

#include "finish.h"

#ifdef __CUDACC__
#define FASTFEED_UNROLL _Pragma("unroll")
#else
#define FASTFEED_UNROLL
#endif

namespace fastfeed {

constexpr int GROUP = 8;
constexpr int WARP = 32;

// Whether the fast way can take the batch.
inline bool in_groups(const FinishArgs& a) {
    const auto whole = [](int64_t stride) { return stride % GROUP == 0; };
    return a.normalizer.fused && a.w % GROUP == 0 && a.stride_c == 1 && a.stride_w == a.c &&
           whole(a.stride_h) && whole(a.stride_n) &&
           reinterpret_cast<uintptr_t>(a.src) % 8 == 0 && reinterpret_cast<uintptr_t>(a.dst) % 16 == 0 &&
           a.h * (a.w / GROUP) < int64_t{1} << 31;
}

// 8 pixels: 2 * C words.
template <int C>
struct Pixels {
    uint32_t word[2 * C];

    // The byte as a float, by way of 0x4B0000xx, which is 2^23 + xx.
    FASTFEED_HD float value(int i) const {
#ifdef __CUDA_ARCH__
        const uint32_t bits = __byte_perm(word[i / 4], 0x4B000000, 0x7540 | i % 4);
#else
        const uint32_t bits = 0x4B000000 | (word[i / 4] >> 8 * (i % 4) & 255);
#endif
        return bits_to_float(bits) - 8388608.0f;
    }

    FASTFEED_HD Pixels mirrored() const {
        Pixels result{};
        FASTFEED_UNROLL
        for (int i = 0; i < 8 * C; ++i) {
            const int from = (GROUP - 1 - i / C) * C + i % C;
            result.word[i / 4] |= (word[from / 4] >> 8 * (from % 4) & 255) << 8 * (i % 4);
        }
        return result;
    }
};

// The values of sample n, with parameters s, at output row y and the columns [x, x + GROUP), none of them erased.
template <int C>
FASTFEED_HD void group_values(const FinishArgs& a, const SampleParameters& s, int64_t n, uint32_t y, uint32_t x,
                              float* values) {
    const int64_t source_y = s.flip & 2 ? a.h - 1 - y : y;
    const int64_t source_x = s.flip & 1 ? a.w - GROUP - x : x;
    const uint8_t* src = a.src + n * a.stride_n + source_y * a.stride_h + source_x * C;
    Pixels<C> pixels;
#ifdef __CUDA_ARCH__
#pragma unroll
    for (int i = 0; i < C; ++i) {
        const uint2 eight = __ldg(reinterpret_cast<const uint2*>(src) + i);
        pixels.word[2 * i] = eight.x;
        pixels.word[2 * i + 1] = eight.y;
    }
#else
    std::memcpy(pixels.word, src, sizeof pixels.word);
#endif
    if (s.flip & 1) pixels = pixels.mirrored();
    const float factor = a.normalizer.factor;
    if (factor == 0) {  // one branch for all values
        FASTFEED_UNROLL
        for (int i = 0; i < GROUP * C; ++i) values[i] = level(pixels.value(i));
    } else {
        FASTFEED_UNROLL
        for (int i = 0; i < GROUP * C; ++i) values[i] = pixels.value(i) * factor;
    }
    FASTFEED_UNROLL
    for (int i = 0; i < GROUP * C; ++i) {
        const Channel& k = a.normalizer.channel[i % C];
        values[i] = normalize_fused(values[i], k.level_mean, k.inverse, k.inverse_error);
    }
}

// The values of sample n, with parameters s, at one output pixel; any strides, any mean and std.
template <int C>
FASTFEED_HD void pixel_values(const FinishArgs& a, const SampleParameters& s, int64_t n, int64_t y, int64_t x,
                              float* values) {
    if (s.erase.has_row(y) && s.erase.has_column(x)) {
        erased_pixel<C>(a, s, y, x, values);
        return;
    }
    const uint8_t* src = a.src + n * a.stride_n + (s.flip & 2 ? a.h - 1 - y : y) * a.stride_h +
                         (s.flip & 1 ? a.w - 1 - x : x) * a.stride_w;
    FASTFEED_UNROLL
    for (int c = 0; c < C; ++c) {
        const Channel& k = a.normalizer.channel[c];
        const float byte = src[c * a.stride_c];
        const float factor = a.normalizer.factor;
        values[c] = factor == 0 ? normalize(byte, k.mean, k.std) : normalize_multiplied(byte, factor, k.mean, k.std);
    }
}

// The same, mixed with the partner: the finished pixel.
template <int C>
FASTFEED_HD void finished_pixel(const FinishArgs& a, int64_t n, int64_t y, int64_t x, float* values) {
    const SampleParameters s = a.sample(n);
    const bool cut = s.cut.has_row(y) && s.cut.has_column(x);
    const int64_t first = cut ? s.partner : n;
    pixel_values<C>(a, a.sample(first), first, y, x, values);
    if (cut || s.weight == 1.0f) return;
    float partner[C];
    pixel_values<C>(a, a.sample(s.partner), s.partner, y, x, partner);
    FASTFEED_UNROLL
    for (int c = 0; c < C; ++c) values[c] = blend(values[c], partner[c], s.weight);
}

// Whether a rectangle has any of the columns [x, x + GROUP) of row y, and whether it has all.
FASTFEED_HD bool has_any(const Rectangle& r, uint32_t y, uint32_t x) {
    return r.has_row(y) && r.width > 0 && int64_t{r.left} < int64_t{x} + GROUP && int64_t{r.left} + r.width > x;
}
FASTFEED_HD bool has_all(const Rectangle& r, uint32_t y, uint32_t x) {
    return r.has_row(y) && r.has_column(x) && r.has_column(int64_t{x} + GROUP - 1);
}

// What a warp makes: the groups [first, first + WARP) of a sample, those of them that exist.
template <class T, int C, bool CHANNELS_LAST>
struct WarpTile {
    using Bits = typename T::Bits;
    static constexpr int PIECES = GROUP * C * sizeof(Bits) / 16;  // of 16 bytes, in a group
    // An odd number of pieces from group to group: 8 threads that store a piece each then meet all 32 banks once.
    static constexpr int STRIDE = PIECES + (PIECES % 2 == 0);
    struct alignas(16) Piece {
        uint32_t word[4];
    };
    Piece piece[CHANNELS_LAST ? WARP * STRIDE : 1];

    // Lane's group: into the tile, or, as planes, where it belongs.
    FASTFEED_HD void make(const FinishArgs& a, int64_t n, uint32_t first, int lane) {
        const uint32_t group = first + lane, groups_per_row = static_cast<uint32_t>(a.w / GROUP);
        const uint32_t y = group / groups_per_row, x = group % groups_per_row * GROUP;
        if (y >= a.h) return;
        const SampleParameters s = a.sample(n);
        const bool own_alone = s.weight == 1.0f && !has_any(s.cut, y, x), partner_alone = has_all(s.cut, y, x);
        const SampleParameters partner = own_alone ? s : a.sample(s.partner);
        if (has_any(s.erase, y, x) || has_any(partner.erase, y, x)) {  // rare, and long: pixel by pixel
            for (int p = 0; p < GROUP; ++p) {
                float values[C];
                finished_pixel<C>(a, n, y, x + p, values);
                FASTFEED_UNROLL
                for (int c = 0; c < C; ++c) {
                    Bits* to = CHANNELS_LAST ? reinterpret_cast<Bits*>(&piece[lane * STRIDE]) + p * C + c
                                             : plane(a, n, c, y, x) + p;
                    *to = T::round(values[c]);
                }
            }
            return;
        }
        // Three ways, so that the usual ones carry nothing of the others: own or partner's alone, mixup, cutmix's edge.
        float values[GROUP * C];
        group_values<C>(a, partner_alone ? partner : s, partner_alone ? s.partner : n, y, x, values);
        if (!own_alone && !partner_alone) {
            float other[GROUP * C];
            group_values<C>(a, partner, s.partner, y, x, other);
            if (has_any(s.cut, y, x)) {
                FASTFEED_UNROLL
                for (int i = 0; i < GROUP * C; ++i) {
                    const float own = s.weight == 1.0f ? values[i] : blend(values[i], other[i], s.weight);
                    values[i] = s.cut.has_column(int64_t{x} + i / C) ? other[i] : own;
                }
            } else {
                FASTFEED_UNROLL
                for (int i = 0; i < GROUP * C; ++i) values[i] = blend(values[i], other[i], s.weight);
            }
        }
        if constexpr (CHANNELS_LAST) {
            pack<1>(values, &piece[lane * STRIDE]);
        } else {
            FASTFEED_UNROLL
            for (int c = 0; c < C; ++c) pack<C>(values + c, reinterpret_cast<Piece*>(plane(a, n, c, y, x)));
        }
    }

    // Lane's share of the tile's way to memory, once all lanes have made theirs.
    FASTFEED_HD void write(const FinishArgs& a, int64_t n, uint32_t first, int lane) const {
        if constexpr (CHANNELS_LAST) {
            const uint32_t groups = static_cast<uint32_t>(a.h * (a.w / GROUP));
            const int pieces = static_cast<int>(groups - first < WARP ? groups - first : WARP) * PIECES;
            Piece* dst = static_cast<Piece*>(a.dst) + (n * groups + first) * PIECES;
            FASTFEED_UNROLL
            for (int k = 0; k < PIECES; ++k) {
                const int i = k * WARP + lane;
                if (i < pieces) dst[i] = piece[i / PIECES * STRIDE + i % PIECES];
            }
        }
    }

  private:
    static FASTFEED_HD Bits* plane(const FinishArgs& a, int64_t n, int c, uint32_t y, uint32_t x) {
        return static_cast<Bits*>(a.dst) + ((n * C + c) * a.h + y) * a.w + x;
    }

    // Rounds GROUP * C / STEP values that lie STEP apart.
    template <int STEP>
    static FASTFEED_HD void pack(const float* values, Piece* out) {
        constexpr int per_word = 4 / sizeof(Bits), per_piece = 4 * per_word, count = GROUP * C / STEP;
        FASTFEED_UNROLL
        for (int i = 0; i < count; i += per_piece) {
            Piece p;
            FASTFEED_UNROLL
            for (int w = 0; w < 4; ++w) {
                const float* from = values + (i + w * per_word) * STEP;
                p.word[w] = T::round(from[0]);
                if (per_word == 2) p.word[w] |= static_cast<uint32_t>(T::round(from[STEP])) << 16;
            }
            out[i / per_piece] = p;
        }
    }
};

// The slow way, for any batch: output pixel `pixel` of it.
template <int C>
FASTFEED_HD void make_pixel(const FinishArgs& a, int64_t pixel) {
    const int64_t n = pixel / (a.h * a.w), y = pixel / a.w % a.h, x = pixel % a.w;
    float values[C];
    finished_pixel<C>(a, n, y, x, values);
    FASTFEED_UNROLL
    for (int c = 0; c < C; ++c) {
        const int64_t to = a.channels_last ? pixel * C + c : ((n * C + c) * a.h + y) * a.w + x;
        switch (a.output) {
            case Output::float32: static_cast<uint32_t*>(a.dst)[to] = Float32::round(values[c]); break;
            case Output::float16: static_cast<uint16_t*>(a.dst)[to] = Float16::round(values[c]); break;
            case Output::bfloat16: static_cast<uint16_t*>(a.dst)[to] = BFloat16::round(values[c]); break;
        }
    }
}

// Calls launch.template tiles<T, C, CHANNELS_LAST>(a) or launch.template pixels<C>(a), whichever the batch takes; false
// for a number of channels or an output type that neither does.
template <class Launch>
bool dispatch_finish(const FinishArgs& a, const Launch& launch) {
#define FASTFEED_TILES(T, C) \
    (a.channels_last ? launch.template tiles<T, C, true>(a) : launch.template tiles<T, C, false>(a))
#define FASTFEED_CHANNELS(C)                                                 \
    case C:                                                                  \
        if (!in_groups(a)) return launch.template pixels<C>(a), true;        \
        switch (a.output) {                                                  \
            case Output::float32: return FASTFEED_TILES(Float32, C), true;   \
            case Output::float16: return FASTFEED_TILES(Float16, C), true;   \
            case Output::bfloat16: return FASTFEED_TILES(BFloat16, C), true; \
        }                                                                    \
        return false;
    switch (a.c) {
        FASTFEED_CHANNELS(1)
        FASTFEED_CHANNELS(3)
        FASTFEED_CHANNELS(4)
    }
    return false;
#undef FASTFEED_CHANNELS
#undef FASTFEED_TILES
}

}  // namespace fastfeed
