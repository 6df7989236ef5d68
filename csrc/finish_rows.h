// The rows of the last pass. finish_cpu.cpp includes this once per instruction set, each time in another namespace and
// with another target for the compiler, so it has no include guard and includes nothing.

// Where rows lie between their steps: so many at a time that they stay in the first cache, and that the cost of
// beginning a row, more than that of a block, is shared.
struct Scratch {
    explicit Scratch(int64_t row_values)
        : rows(std::clamp<int64_t>(8192 / std::max<int64_t>(row_values, 1), 1, 64)),
          bytes{Buffer<uint8_t>(rows * row_values + 64), Buffer<uint8_t>(rows * row_values + 64)},
          floats{Buffer<uint32_t>(row_values), Buffer<uint32_t>(row_values)},
          values(rows * row_values) {}
    int64_t rows;
    Buffer<uint8_t> bytes[2];    // pixels in the order of the output, of a sample and of its partner
    Buffer<uint32_t> floats[2];  // their values, of one row
    Buffer<uint32_t> values;     // the output, where it must be taken apart into planes
};

template <int C>
void copy_reversed(const uint8_t* src, int64_t pixels, uint8_t* dst) {
    // src is the last pixel of those to copy from, in their order.
    int64_t i = 0;
#if defined(FASTFEED_AVX512_BF16)
    if constexpr (C != 1) {  // as many pixels as fit into 64 bytes, under a mask: nothing beside them is read
        constexpr int PIXELS = 64 / C;
        constexpr __mmask64 MASK = ~__mmask64{0} >> (64 - PIXELS * C);
        alignas(64) static constexpr auto order = [] {
            struct {
                uint8_t byte[64];
            } from{};
            for (int j = 0; j < PIXELS * C; ++j) from.byte[j] = (PIXELS - 1 - j / C) * C + j % C;
            return from;
        }();
        const __m512i reversed = _mm512_load_si512(order.byte);
        for (; i + PIXELS <= pixels; i += PIXELS) {
            const __m512i many = _mm512_maskz_loadu_epi8(MASK, src - (i + PIXELS - 1) * C);
            _mm512_mask_storeu_epi8(dst + i * C, MASK, _mm512_permutexvar_epi8(reversed, many));
        }
    }
#else
    if constexpr (C == 3) {
        // Five pixels at a time, with a sixteenth byte that the next five overwrite. It is read from the pixel after
        // them, so the first pixel, which may have none after it, goes alone.
        using Vector = uint8_t __attribute__((vector_size(16)));
        if (pixels > 0) {
            std::memcpy(dst, src, 3);
            i = 1;
        }
        for (; i + 5 <= pixels; i += 5) {
            Vector five;
            std::memcpy(&five, src - (i + 4) * 3, sizeof five);
#ifdef __clang__
            five = __builtin_shufflevector(five, five, 12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15);
#else
            five = __builtin_shuffle(five, Vector{12, 13, 14, 9, 10, 11, 6, 7, 8, 3, 4, 5, 0, 1, 2, 15});
#endif
            std::memcpy(dst + i * 3, &five, sizeof five);
        }
    }
#endif
    for (; i < pixels; ++i) {
        for (int c = 0; c < C; ++c) dst[i * C + c] = src[-i * C + c];
    }
}

template <int C>
FASTFEED_INLINE void gather_pixels(const uint8_t* first, int64_t channel, int64_t step, int64_t pixels,
                                   uint8_t* __restrict dst) {
    for (int64_t i = 0; i < pixels; ++i) {
        for (int c = 0; c < C; ++c) dst[i * C + c] = first[c * channel + i * step];
    }
}

// The pixels [begin, end) of output row y, one after the other: where they lie, or copied to `scratch`.
template <int C>
const uint8_t* load_pixels(const FinishArgs& a, const SampleParameters& s, int64_t n, int64_t y, int64_t begin,
                           int64_t end, uint8_t* scratch) {
    const bool mirrored = s.flip & 1;
    const uint8_t* row = a.src + n * a.stride_n + (s.flip & 2 ? a.h - 1 - y : y) * a.stride_h;
    if (a.stride_c == 1 && a.stride_w == C) {
        if (!mirrored) return row + begin * C;
        copy_reversed<C>(row + (a.w - 1 - begin) * C, end - begin, scratch);
        return scratch;
    }
    const uint8_t* first = row + (mirrored ? a.w - 1 - begin : begin) * a.stride_w;
    if (a.stride_w != 1) {
        const int64_t step = mirrored ? -a.stride_w : a.stride_w;
        gather_pixels<C>(first, a.stride_c, step, end - begin, scratch);
    } else if (mirrored) {  // planes: with the step a constant, compilers make vectors of it
        gather_pixels<C>(first, a.stride_c, -1, end - begin, scratch);
    } else {
        gather_pixels<C>(first, a.stride_c, 1, end - begin, scratch);
    }
    return scratch;
}

// Asks for the pixels of a later output row, if they are read backwards: a processor sees no stream in rows that each
// run down while their addresses go up, and waits for every one, a third of the whole time.
template <int C>
FASTFEED_INLINE void prefetch_mirrored(const FinishArgs& a, const SampleParameters& s, int64_t n, int64_t y) {
    if (!(s.flip & 1) || y >= a.h || a.stride_w != C) return;
    const uint8_t* row = a.src + n * a.stride_n + (s.flip & 2 ? a.h - 1 - y : y) * a.stride_h;
    for (int64_t i = 0; i < a.w * C; i += 64) __builtin_prefetch(row + i);
}

// The pixels of output rows [y, y + rows), likewise.
template <int C>
const uint8_t* load_rows(const FinishArgs& a, const SampleParameters& s, int64_t n, int64_t y, int64_t rows,
                         uint8_t* scratch) {
    const int64_t size = a.w * C;
    if (s.flip == 0 && a.stride_c == 1 && a.stride_w == C && a.stride_h == size) {
        return load_pixels<C>(a, s, n, y, 0, a.w, scratch);
    }
    for (int64_t i = 0; i < rows; ++i) {
        prefetch_mirrored<C>(a, s, n, y + i + 4);
        uint8_t* row = scratch + i * size;
        const uint8_t* pixels = load_pixels<C>(a, s, n, y + i, 0, a.w, row);
        if (pixels != row) std::memcpy(row, pixels, size);
    }
    return scratch;
}

// The two ends of a block's way. What lies between is plain loops over 32-bit values, which compilers turn into vectors
// of any width; they do worse where the width of the values changes.
FASTFEED_INLINE void widen(const uint8_t* src, float* values) {
#if defined(FASTFEED_AVX512)
    for (int i = 0; i < BLOCK; i += 16) {
        const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i));
        _mm512_store_ps(values + i, _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(bytes)));
    }
#elif defined(FASTFEED_AVX2)
    for (int i = 0; i < BLOCK; i += 8) {
        const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(src + i));
        _mm256_store_ps(values + i, _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(bytes)));
    }
#else
    for (int i = 0; i < BLOCK; ++i) values[i] = src[i];
#endif
}

// The levels of the bytes, as many times as large as those of `Lanes`. 2^32 / 255 of a byte is the byte written four
// times, and a part of 1 that is lost; what a float then has no room for is always more than half of its last bit
// (256 / 255 of half the byte, which begins with a 1), so rounding up is rounding to nearest.
FASTFEED_INLINE void widen_to_levels(const uint8_t* src, float* levels) {
#if defined(FASTFEED_AVX512)
    const __m512i four_times = _mm512_setr_epi32(
        0x00000000, 0x01010101, 0x02020202, 0x03030303, 0x04040404, 0x05050505, 0x06060606, 0x07070707, 0x08080808,
        0x09090909, 0x0a0a0a0a, 0x0b0b0b0b, 0x0c0c0c0c, 0x0d0d0d0d, 0x0e0e0e0e, 0x0f0f0f0f);
    for (int i = 0; i < BLOCK; i += 16) {
        const __m512i bytes =
            _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(src + i)));
        _mm512_store_ps(levels + i, _mm512_cvt_roundepu32_ps(_mm512_shuffle_epi8(bytes, four_times),
                                                              _MM_FROUND_TO_POS_INF | _MM_FROUND_NO_EXC));
    }
#else
    widen(src, levels);
    for (int j = 0; j < BLOCK; ++j) levels[j] = level(levels[j]);
#endif
}

// The upper halves of the values.
FASTFEED_INLINE void narrow(const uint32_t* values, uint16_t* dst) {
#if defined(FASTFEED_AVX512)
    alignas(64) static constexpr uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                     33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    for (int i = 0; i < BLOCK; i += 32) {
        const __m512i low = _mm512_load_si512(values + i), high = _mm512_load_si512(values + i + 16);
        _mm512_storeu_si512(dst + i, _mm512_permutex2var_epi16(low, _mm512_load_si512(odd), high));
    }
#elif defined(FASTFEED_AVX2)
    for (int i = 0; i < BLOCK; i += 16) {
        const __m256i low = _mm256_load_si256(reinterpret_cast<const __m256i*>(values + i));
        const __m256i high = _mm256_load_si256(reinterpret_cast<const __m256i*>(values + i + 8));
        // The two halves of a vector are packed apart: 0 2 1 3 puts them in order.
        const __m256i packed = _mm256_packus_epi32(_mm256_srli_epi32(low, 16), _mm256_srli_epi32(high, 16));
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i), _mm256_permute4x64_epi64(packed, 0b11011000));
    }
#else
    for (int i = 0; i < BLOCK; ++i) dst[i] = static_cast<uint16_t>(values[i] >> 16);
#endif
}

// A block's end. `stream` is whether it goes past the caches; then `dst` is at a multiple of 64 bytes.
#if defined(FASTFEED_AVX512)
FASTFEED_INLINE void store(void* dst, __m512i bits, bool stream) {
    stream ? _mm512_stream_si512(static_cast<__m512i*>(dst), bits) : _mm512_storeu_si512(dst, bits);
}
#endif

FASTFEED_INLINE void round_block(const float* values, Float32, uint32_t* dst, [[maybe_unused]] bool stream) {
#if defined(FASTFEED_AVX512)
    for (int i = 0; i < BLOCK; i += 16) store(dst + i, _mm512_load_si512(values + i), stream);
#else
    std::memcpy(dst, values, BLOCK * sizeof *dst);
#endif
}

FASTFEED_INLINE void round_block(const float* values, BFloat16, uint16_t* dst, [[maybe_unused]] bool stream) {
#if defined(FASTFEED_AVX512_BF16)
    for (int i = 0; i < BLOCK; i += 32) {
        const __m512bh rounded = _mm512_cvtne2ps_pbh(_mm512_load_ps(values + i + 16), _mm512_load_ps(values + i));
        __m512i bits;
        std::memcpy(&bits, &rounded, sizeof bits);
        store(dst + i, bits, stream);
    }
#else
    alignas(64) uint32_t bits[BLOCK];
    for (int j = 0; j < BLOCK; ++j) bits[j] = BFloat16::rounded_above(values[j]);
    narrow(bits, dst);
#endif
}

FASTFEED_INLINE void round_block(const float* values, Float16, uint16_t* dst, bool) {
#if defined(FASTFEED_AVX512)
    for (int i = 0; i < BLOCK; i += 16) {
        _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + i),
                            _mm512_cvtps_ph(_mm512_load_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
    }
#elif defined(FASTFEED_AVX2)
    for (int i = 0; i < BLOCK; i += 8) {
        _mm_storeu_si128(reinterpret_cast<__m128i*>(dst + i),
                         _mm256_cvtps_ph(_mm256_load_ps(values + i), _MM_FROUND_TO_NEAREST_INT));
    }
#else
    for (int j = 0; j < BLOCK; ++j) dst[j] = Float16::round(values[j]);
#endif
}

template <Form FORM>
FASTFEED_INLINE void normalize_block(const uint8_t* src, const Lanes& k, float* values) {
    FORM == Form::fused ? widen_to_levels(src, values) : widen(src, values);
    for (float* v = values; v < values + BLOCK; v += PERIOD) {
        for (int j = 0; j < PERIOD; ++j) {
            v[j] = FORM == Form::single     ? fmaf(v[j], k.scale[j], k.offset[j])
                   : FORM == Form::fused    ? normalize_fused(v[j], k.level_mean[j], k.inverse[j], k.inverse_error[j])
                   : FORM == Form::multiply ? normalize_multiplied(v[j], k.factor, k.mean[j], k.std[j])
                                            : normalize(v[j], k.mean[j], k.std[j]);
        }
    }
}

// Calls block(src..., dst) for every block of a row's `count` values. The last one, if it is not full, is done in
// buffers of a whole block's size.
template <class Bits, class Body, class... Source>
FASTFEED_INLINE void for_each_block(int64_t count, Bits* dst, const Body& block, const Source*... src) {
    int64_t i = 0;
    for (; i + BLOCK <= count; i += BLOCK) block(src + i..., dst + i);
    if (i == count) return;
    struct Padded {
        uint8_t byte[BLOCK] = {};
        Padded(const uint8_t* from, int64_t size) { std::memcpy(byte, from, size); }
    };
    alignas(64) Bits last[BLOCK];
    block(Padded(src + i, count - i).byte..., last);
    std::memcpy(dst + i, last, (count - i) * sizeof(Bits));
}

template <class T, Form FORM>
void normalize_pixels(const uint8_t* src, int64_t count, const Lanes& k, bool stream, typename T::Bits* dst) {
    const auto write = [&](auto streamed) {
        for_each_block(count, dst, [&](const uint8_t* in, typename T::Bits* out) {
            alignas(64) float values[BLOCK];
            normalize_block<FORM>(in, k, values);
            round_block(values, T(), out, streamed);
        }, src);
    };
    stream && reinterpret_cast<uintptr_t>(dst) % 64 == 0 ? write(std::true_type()) : write(std::false_type());
}

template <class T, Form FORM>
void blend_pixels(const uint8_t* own, const uint8_t* partner, float weight, int64_t count, const Lanes& k,
                  bool stream, typename T::Bits* dst) {
    stream &= reinterpret_cast<uintptr_t>(dst) % 64 == 0;
    for_each_block(count, dst, [&](const uint8_t* in, const uint8_t* partner_in, typename T::Bits* out) {
        alignas(64) float values[BLOCK], partner_values[BLOCK];
        normalize_block<FORM>(in, k, values);
        normalize_block<FORM>(partner_in, k, partner_values);
        for (int j = 0; j < BLOCK; ++j) values[j] = blend(values[j], partner_values[j], weight);
        round_block(values, T(), out, stream);
    }, own, partner);
}

// The columns of [begin, end) that lie in a rectangle, on row y; empty at `end` if none do.
struct Columns {
    int64_t begin, end;
    Columns(const Rectangle& rectangle, int64_t y, int64_t first, int64_t last) : begin(last), end(last) {
        if (!rectangle.has_row(y) || rectangle.width <= 0) return;
        begin = std::clamp<int64_t>(rectangle.left, first, last);
        end = std::clamp<int64_t>(int64_t{rectangle.left} + rectangle.width, begin, last);
    }
    bool empty() const { return begin == end; }
};

// The erased pixels of a sample in some columns of output row y.
template <class T, int C>
void erase_pixels(const FinishArgs& a, const SampleParameters& s, int64_t y, const Columns& columns,
                  typename T::Bits* __restrict dst) {
    const int64_t count = columns.end - columns.begin;
    if (s.noise == 0) {
        typename T::Bits fill[C];
        for (int c = 0; c < C; ++c) fill[c] = T::round(a.fill[c]);
        for (int64_t i = 0; i < count; ++i) {
            for (int c = 0; c < C; ++c) dst[i * C + c] = fill[c];
        }
        return;
    }
    constexpr int LANES = 16;  // pixels side by side, in vectors
    for (int64_t i = 0; i < count; i += LANES) {
        alignas(64) uint32_t words[4][LANES];
        alignas(64) float values[4][LANES];
        for (int lane = 0; lane < LANES; ++lane) {
            const Words pixel = noise_words(s, y, columns.begin + i + lane);
            for (int c = 0; c < 4; ++c) words[c][lane] = pixel.word[c];
        }
        for (int c = 0; c < C; ++c) {
            for (int lane = 0; lane < LANES; ++lane) values[c][lane] = standard_normal(words[c][lane]);
        }
        const int pixels = static_cast<int>(count - i < LANES ? count - i : LANES);
        for (int lane = 0; lane < pixels; ++lane) {
            for (int c = 0; c < C; ++c) dst[(i + lane) * C + c] = T::round(values[c][lane]);
        }
    }
}

// Sample n's own values for the pixels [begin, end) of output row y: flipped, normalised, erased.
template <class T, int C, Form FORM>
void write_sample(const FinishArgs& a, const SampleParameters& s, const Lanes& k, int64_t n, int64_t y,
                  int64_t begin, int64_t end, uint8_t* scratch, bool stream, typename T::Bits* dst) {
    normalize_pixels<T, FORM>(load_pixels<C>(a, s, n, y, begin, end, scratch), (end - begin) * C, k, stream, dst);
    const Columns erased(s.erase, y, begin, end);
    if (!erased.empty()) erase_pixels<T, C>(a, s, y, erased, dst + (erased.begin - begin) * C);
}

// The values of output row y of sample n, pixel after pixel.
template <class T, int C, Form FORM>
void write_row(const FinishArgs& a, const Lanes& k, int64_t n, int64_t y, Scratch& scratch, bool stream,
               typename T::Bits* dst) {
    const SampleParameters s = a.sample(n);
    prefetch_mirrored<C>(a, s, n, y + 4);
    if (s.weight != 1.0f) prefetch_mirrored<C>(a, a.sample(s.partner), s.partner, y + 4);
    const Columns cut(s.cut, y, 0, a.w);
    const struct {
        int64_t begin, end;
        bool own;
    } parts[3] = {{0, cut.begin, true}, {cut.begin, cut.end, false}, {cut.end, a.w, true}};
    for (const auto& part : parts) {
        if (part.begin == part.end) continue;
        typename T::Bits* out = dst + part.begin * C;
        if (!part.own || s.weight == 1.0f) {
            const int64_t from = part.own ? n : s.partner;
            write_sample<T, C, FORM>(a, a.sample(from), k, from, y, part.begin, part.end, scratch.bytes[0].get(),
                                      stream, out);
            continue;
        }
        const int64_t values = (part.end - part.begin) * C;
        const int64_t from[2] = {n, s.partner};
        const SampleParameters both[2] = {s, a.sample(s.partner)};
        if (Columns(both[0].erase, y, part.begin, part.end).empty() &&
            Columns(both[1].erase, y, part.begin, part.end).empty()) {
            const uint8_t* pixels[2];
            for (int i = 0; i < 2; ++i) {
                pixels[i] = load_pixels<C>(a, both[i], from[i], y, part.begin, part.end, scratch.bytes[i].get());
            }
            blend_pixels<T, before_mixing(FORM)>(pixels[0], pixels[1], s.weight, values, k, stream, out);
        } else {
            for (int i = 0; i < 2; ++i) {
                write_sample<Float32, C, before_mixing(FORM)>(a, both[i], k, from[i], y, part.begin, part.end,
                                                              scratch.bytes[i].get(), false, scratch.floats[i].get());
            }
            for (int64_t i = 0; i < values; ++i) {
                out[i] = T::round(
                    blend(bits_to_float(scratch.floats[0][i]), bits_to_float(scratch.floats[1][i]), s.weight));
            }
        }
    }
}

inline bool touches(const Rectangle& r, int64_t y, int64_t rows) {
    return r.top < y + rows && r.top + int64_t{r.height} > y && r.height > 0 && r.width > 0;
}

// The values of output rows [y, y + rows) of sample n, pixel after pixel: all at once if every pixel of them is made in
// the same way.
template <class T, int C, Form FORM>
void write_some_rows(const FinishArgs& a, const Lanes& k, int64_t n, int64_t y, int64_t rows, Scratch& scratch,
                     bool stream, typename T::Bits* dst) {
    const SampleParameters s = a.sample(n);
    const bool mixed = s.weight != 1.0f;
    const SampleParameters partner = mixed ? a.sample(s.partner) : s;
    if (touches(s.cut, y, rows) || touches(s.erase, y, rows) || touches(partner.erase, y, rows)) {
        for (int64_t i = 0; i < rows; ++i) {
            write_row<T, C, FORM>(a, k, n, y + i, scratch, stream, dst + i * a.w * C);
        }
        return;
    }
    const uint8_t* pixels = load_rows<C>(a, s, n, y, rows, scratch.bytes[0].get());
    if (!mixed) {
        normalize_pixels<T, FORM>(pixels, rows * a.w * C, k, stream, dst);
        return;
    }
    const uint8_t* partner_pixels = load_rows<C>(a, partner, s.partner, y, rows, scratch.bytes[1].get());
    blend_pixels<T, before_mixing(FORM)>(pixels, partner_pixels, s.weight, rows * a.w * C, k, stream, dst);
}

template <class T, int C, Form FORM>
void write_rows(const FinishArgs& a, const Lanes& k, bool stream, int64_t begin, int64_t end) {
    using Bits = typename T::Bits;
    Scratch scratch(a.w * C);
    for (int64_t row = begin, rows; row < end; row += rows) {
        const int64_t n = row / a.h, y = row % a.h;
        rows = std::min({scratch.rows, end - row, a.h - y});
        if (a.channels_last) {
            write_some_rows<T, C, FORM>(a, k, n, y, rows, scratch, stream, static_cast<Bits*>(a.dst) + row * a.w * C);
            continue;
        }
        Bits* values = reinterpret_cast<Bits*>(scratch.values.get());
        write_some_rows<T, C, FORM>(a, k, n, y, rows, scratch, false, values);
        for (int c = 0; c < C; ++c) {
            Bits* __restrict plane = static_cast<Bits*>(a.dst) + ((n * C + c) * a.h + y) * a.w;
            for (int64_t x = 0; x < rows * a.w; ++x) plane[x] = values[x * C + c];
        }
    }
#if defined(FASTFEED_AVX512)
    if (stream) _mm_sfence();  // streamed values are not ordered before the news that they are there
#endif
}

template <class T, Form FORM>
Rows rows_for(int channels) {
    return channels == 1 ? write_rows<T, 1, FORM> : channels == 3 ? write_rows<T, 3, FORM> : write_rows<T, 4, FORM>;
}

template <class T>
Rows rows_for(int channels, Form form) {
    if constexpr (sizeof(typename T::Bits) == 2) {
        if (form == Form::single) return rows_for<T, Form::single>(channels);
    }
    return form == Form::divide     ? rows_for<T, Form::divide>(channels)
           : form == Form::multiply ? rows_for<T, Form::multiply>(channels)
                                    : rows_for<T, Form::fused>(channels);
}

inline Rows rows_for(const FinishArgs& a, Form form) {
    return a.output == Output::float32   ? rows_for<Float32>(a.c, form)
           : a.output == Output::float16 ? rows_for<Float16>(a.c, form)
                                         : rows_for<BFloat16>(a.c, form);
}
