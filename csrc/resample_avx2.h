// The passes of a resizing with AVX2: see resample_rows.h.

// Weights as high * 2^15 + low, side by side in pairs: what the processor multiplies with 16 bits.
struct Four {
    uint32_t high[2], low[2];  // of the first and third, and of the second and fourth
    explicit Four(const int32_t* weights) {
        for (int i = 0; i < 2; ++i) {
            high[i] = pair(weights[i] >> 15, weights[i + 2] >> 15);
            low[i] = pair(weights[i] & 0x7fff, weights[i + 2] & 0x7fff);
        }
    }
    static uint32_t pair(int32_t a, int32_t b) { return static_cast<uint16_t>(a) | static_cast<uint32_t>(b) << 16; }
};

// The sums of eight values.
struct Sum {
    __m256i high, low;
    FASTFEED_INLINE Sum() : high(_mm256_setzero_si256()), low(_mm256_set1_epi32(1 << (PRECISION - 1))) {}
    FASTFEED_INLINE void add(__m256i bytes, __m256i high0, __m256i high1, __m256i low0, __m256i low1) {
        const __m256i even = _mm256_and_si256(bytes, _mm256_set1_epi16(255)), odd = _mm256_srli_epi16(bytes, 8);
        high = _mm256_add_epi32(high, _mm256_add_epi32(_mm256_madd_epi16(even, high0), _mm256_madd_epi16(odd, high1)));
        low = _mm256_add_epi32(low, _mm256_add_epi32(_mm256_madd_epi16(even, low0), _mm256_madd_epi16(odd, low1)));
    }
    FASTFEED_INLINE __m256i value() const {
        return _mm256_srai_epi32(_mm256_add_epi32(_mm256_slli_epi32(high, 15), low), PRECISION);
    }
};

// Four sums as bytes, in each half of the vector four of each.
FASTFEED_INLINE __m256i pack(const Sum (&sums)[4]) {
    return _mm256_packus_epi16(_mm256_packs_epi32(sums[0].value(), sums[1].value()),
                               _mm256_packs_epi32(sums[2].value(), sums[3].value()));
}

// A group of rows: for every value of a row its four bytes.
inline int64_t group_bytes(int64_t width) { return (3 * width + 31) / 32 * 128 + 32; }  // see filter_rows for the 32

inline void interleave_rows(const uint8_t* const (&rows)[4], int64_t width, uint8_t* group) {
    for (int64_t v = 0; v < 3 * width; v += 16) {
        __m128i row[4];
        for (int r = 0; r < 4; ++r) row[r] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + v));
        auto* to = reinterpret_cast<__m128i*>(group + 4 * v);
        const __m128i low[2] = {_mm_unpacklo_epi8(row[0], row[1]), _mm_unpacklo_epi8(row[2], row[3])};
        const __m128i high[2] = {_mm_unpackhi_epi8(row[0], row[1]), _mm_unpackhi_epi8(row[2], row[3])};
        _mm_store_si128(to, _mm_unpacklo_epi16(low[0], low[1]));
        _mm_store_si128(to + 1, _mm_unpackhi_epi16(low[0], low[1]));
        _mm_store_si128(to + 2, _mm_unpacklo_epi16(high[0], high[1]));
        _mm_store_si128(to + 3, _mm_unpackhi_epi16(high[0], high[1]));
    }
}

inline void separate_rows(const uint8_t* group, int64_t width, int64_t rows, uint8_t* dst) {
    for (int64_t r = 0; r < rows; ++r) {
        for (int64_t v = 0; v < 3 * width; ++v) *dst++ = group[4 * v + r];
    }
}

// The horizontal pass: two pixels of the output at a time, each with a fourth value that means nothing.
struct Columns {
    struct Step {
        alignas(32) uint32_t high[2][8], low[2][8];
        int32_t offset[2];
    };
    int64_t groups, pairs;
    Buffer<Step> steps;

    Columns(const Taps& taps, int64_t out_w, int64_t width)
        : groups(taps.groups), pairs((out_w + 1) / 2), steps(pairs * taps.groups) {
        for (int64_t p = 0; p < pairs; ++p) {
            for (int64_t g = 0; g < groups; ++g) {
                Step& step = steps[p * groups + g];
                for (int i = 0; i < 2; ++i) {
                    const int64_t x = 2 * p + i;  // in the padding perhaps
                    int32_t weights[4];
                    for (int t = 0; t < 4; ++t) weights[t] = taps.weights[(4 * g + t) * taps.padded + x];
                    const Four four(weights);
                    for (int j = 0; j < 2; ++j) {
                        std::fill_n(step.high[j] + 4 * i, 4, four.high[j]);
                        std::fill_n(step.low[j] + 4 * i, 4, four.low[j]);
                    }
                    // Where only zeros follow, the row may have ended.
                    step.offset[i] = static_cast<int32_t>(3 * std::min(taps.first[x] + 4 * g, width - 1));
                }
            }
        }
    }
};

FASTFEED_INLINE __m256i load(const uint32_t* from) {
    return _mm256_load_si256(reinterpret_cast<const __m256i*>(from));
}

inline void filter_rows(const uint8_t* const (&rows)[4], const Columns& columns, uint8_t* group) {
    const __m256i by_channel = _mm256_setr_epi8(0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1,  //
                                                0, 3, 6, 9, 1, 4, 7, 10, 2, 5, 8, 11, -1, -1, -1, -1);
    const __m256i transposed = _mm256_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15,  //
                                                0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const Columns::Step* step = columns.steps.get();
    for (int64_t p = 0; p < columns.pairs; ++p, group += 24) {
        Sum sums[4];
        for (int64_t g = 0; g < columns.groups; ++g, ++step) {
            for (int r = 0; r < 4; ++r) {
                const __m128i one = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + step->offset[0]));
                const __m128i two = _mm_loadu_si128(reinterpret_cast<const __m128i*>(rows[r] + step->offset[1]));
                const __m256i bytes = _mm256_inserti128_si256(_mm256_castsi128_si256(one), two, 1);
                sums[r].add(_mm256_shuffle_epi8(bytes, by_channel), load(step->high[0]), load(step->high[1]),
                            load(step->low[0]), load(step->low[1]));
            }
        }
        const __m256i pixels = _mm256_shuffle_epi8(pack(sums), transposed);
        // The next pixel overwrites the fourth value; the last one's lies behind the row.
        _mm_storeu_si128(reinterpret_cast<__m128i*>(group), _mm256_castsi256_si128(pixels));
        _mm_storeu_si128(reinterpret_cast<__m128i*>(group + 12), _mm256_extracti128_si256(pixels, 1));
    }
}

inline void blend_rows(const uint8_t* const* groups, int64_t count, const Four* weights, int64_t width,
                       uint8_t* dst) {
    const __m256i in_order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    const int64_t values = 3 * width;
    for (int64_t v = 0; v < values; v += 32) {
        Sum sums[4];
        for (int64_t g = 0; g < count; ++g) {
            const __m256i high0 = _mm256_set1_epi32(weights[g].high[0]), high1 = _mm256_set1_epi32(weights[g].high[1]);
            const __m256i low0 = _mm256_set1_epi32(weights[g].low[0]), low1 = _mm256_set1_epi32(weights[g].low[1]);
            for (int i = 0; i < 4; ++i) {
                const auto* bytes = reinterpret_cast<const __m256i*>(groups[g] + 4 * v + 32 * i);
                sums[i].add(_mm256_load_si256(bytes), high0, high1, low0, low1);
            }
        }
        const __m256i bytes = _mm256_permutevar8x32_epi32(pack(sums), in_order);
        if (values - v >= 32) {
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(dst + v), bytes);
        } else {
            uint8_t last[32];
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(last), bytes);
            std::memcpy(dst + v, last, values - v);
        }
    }
}
