// The passes of a resizing with AVX-512, VBMI and VNNI: see resample_rows.h.

// Weights as three digits to the base of 256, each in [-128, 127]: what the processor multiplies with bytes. One is
// carried from every digit that is negative.
struct Four {
    uint32_t digit[3];
    explicit Four(const int32_t* weights) {
        const __m128i weight = _mm_loadu_si128(reinterpret_cast<const __m128i*>(weights));
        const __m128i carried[3] = {weight, _mm_add_epi32(weight, _mm_set1_epi32(0x80)),
                                    _mm_add_epi32(weight, _mm_set1_epi32(0x8080))};
        for (int d = 0; d < 3; ++d) {
            digit[d] = static_cast<uint32_t>(_mm_cvtsi128_si32(_mm_cvtepi32_epi8(_mm_srai_epi32(carried[d], 8 * d))));
        }
    }
};

// The sums of 16 values.
struct Sum {
    __m512i digit[3];
    FASTFEED_INLINE Sum()
        : digit{_mm512_set1_epi32(1 << (PRECISION - 1)), _mm512_setzero_si512(), _mm512_setzero_si512()} {}
    FASTFEED_INLINE void add(__m512i bytes, __m512i digit0, __m512i digit1, __m512i digit2) {
        digit[0] = _mm512_dpbusd_epi32(digit[0], bytes, digit0);
        digit[1] = _mm512_dpbusd_epi32(digit[1], bytes, digit1);
        digit[2] = _mm512_dpbusd_epi32(digit[2], bytes, digit2);
    }
    // Rounded, in 32 bits each; not yet in [0, 255].
    FASTFEED_INLINE __m512i value() const {
        const __m512i high = _mm512_add_epi32(_mm512_slli_epi32(digit[2], 8), digit[1]);
        return _mm512_srai_epi32(_mm512_add_epi32(_mm512_slli_epi32(high, 8), digit[0]), PRECISION);
    }
};

// Four sums as bytes, in each quarter of the vector four of each.
FASTFEED_INLINE __m512i pack(const Sum (&sums)[4]) {
    return _mm512_packus_epi16(_mm512_packs_epi32(sums[0].value(), sums[1].value()),
                               _mm512_packs_epi32(sums[2].value(), sums[3].value()));
}

// A group of rows: for every value of a row its four bytes.
inline int64_t group_bytes(int64_t width) { return (3 * width + 63) / 64 * 256; }

// Takes 16 values of each of four rows to four of each value.
FASTFEED_INLINE __m512i transposed() {
    alignas(64) static constexpr auto order = [] {
        struct {
            uint8_t byte[64];
        } from{};
        for (int i = 0; i < 64; ++i) from.byte[i] = static_cast<uint8_t>(i % 4 * 16 + i / 4);
        return from;
    }();
    return _mm512_load_si512(order.byte);
}

inline void interleave_rows(const uint8_t* const (&rows)[4], int64_t width, uint8_t* group) {
    const auto load = [](const uint8_t* from) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from)); };
    for (int64_t v = 0; v < 3 * width; v += 16) {
        __m512i bytes = _mm512_castsi128_si512(load(rows[0] + v));
        bytes = _mm512_inserti32x4(bytes, load(rows[1] + v), 1);
        bytes = _mm512_inserti32x4(bytes, load(rows[2] + v), 2);
        bytes = _mm512_inserti32x4(bytes, load(rows[3] + v), 3);
        _mm512_store_si512(group + 4 * v, _mm512_permutexvar_epi8(transposed(), bytes));
    }
}

inline void separate_rows(const uint8_t* group, int64_t width, int64_t rows, uint8_t* dst) {
    const int64_t values = 3 * width;
    for (int64_t r = 0; r < rows; ++r) {
        const __m512i shift = _mm512_set1_epi32(static_cast<int>(8 * r));
        for (int64_t v = 0; v < values; v += 16) {
            const __mmask16 mask = static_cast<__mmask16>(0xffff >> (16 - std::min<int64_t>(16, values - v)));
            _mm512_mask_cvtepi32_storeu_epi8(dst + r * values + v, mask,
                                             _mm512_srlv_epi32(_mm512_load_si512(group + 4 * v), shift));
        }
    }
}

// 32-bit values of tables at 16 indices, zero where not `asked`. Most are close together, and processors gather slowly.
// A table has CHUNK values more than the indices reach.
class Lookup {
  public:
    FASTFEED_INLINE Lookup(__m512i at, __mmask16 asked) : at_(at), asked_(asked) {
        first_ = _mm512_mask_reduce_min_epi32(asked, at);
        after_ = _mm512_sub_epi32(at, _mm512_set1_epi32(first_));
        close_ = _mm512_mask_cmpge_epi32_mask(asked, after_, _mm512_set1_epi32(16)) == 0;
    }
    FASTFEED_INLINE __m512i in(const void* table) const {
        if (!close_) return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), asked_, at_, table, 4);
        const __m512i values = _mm512_loadu_si512(static_cast<const uint32_t*>(table) + first_);
        return _mm512_maskz_permutexvar_epi32(asked_, after_, values);
    }

  private:
    __m512i at_, after_;
    __mmask16 asked_;
    int32_t first_;
    bool close_;
};

// The horizontal pass, as steps that each take 64 bytes of a row and make 16 sums from them, or add to the
// sums of the step before. Where the image shrinks much, one step cannot reach what all 16 need.
struct Columns {
    struct Step {
        alignas(64) uint32_t from[16];  // four indices of bytes
        uint32_t digit[3][16];
        int32_t offset;
        bool last;
        Step() {}  // not a byte of it is set yet
    };
    std::vector<Step> steps;

    Columns(const Taps& taps, int64_t out_w, int64_t /*width*/) {
        const int64_t padded = taps.padded, size = taps.groups * padded;
        const Buffer<uint32_t> digits(3 * size + CHUNK);
        for (int64_t g = 0; g < taps.groups; ++g) {
            for (int64_t i = 0; i < padded; ++i) {  // as in Four, for vectors of outputs
                uint32_t packed[3] = {};
                for (int t = 0; t < 4; ++t) {
                    const uint32_t weight = static_cast<uint32_t>(taps.weights[(4 * g + t) * padded + i]);
                    packed[0] |= (weight & 255) << (8 * t);
                    packed[1] |= ((weight + 0x80) >> 8 & 255) << (8 * t);
                    packed[2] |= ((weight + 0x8080) >> 16 & 255) << (8 * t);
                }
                for (int d = 0; d < 3; ++d) digits[d * size + g * padded + i] = packed[d];
            }
        }
        steps.reserve((3 * out_w + 15) / 16 * taps.groups);
        const __m512i one = _mm512_set1_epi32(1), two = _mm512_set1_epi32(2), three = _mm512_set1_epi32(3);
        __m512i x = _mm512_setr_epi32(0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5);
        __m512i c = _mm512_setr_epi32(0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0);
        for (int64_t v = 0; v < 3 * out_w; v += 16) {
            // Of the 16 values: where their four bytes begin, where those bytes' weights are, and how many come after.
            const Lookup outputs(x, 0xffff);
            __m512i from = _mm512_add_epi32(_mm512_mullo_epi32(outputs.in(taps.first.get()), three), c), at = x;
            // None for outputs in the padding.
            __m512i groups = _mm512_srli_epi32(_mm512_add_epi32(outputs.in(taps.count.get()), three), 2);
            __mmask16 unfinished = _mm512_test_epi32_mask(groups, groups);
            while (unfinished != 0) {
                Step& step = steps.emplace_back();
                // From the first pixel that is needed, whichever channel asks for it.
                const int32_t first = _mm512_mask_reduce_min_epi32(unfinished, from);
                step.offset = first / 3 * 3;
                const __m512i inside = _mm512_sub_epi32(from, _mm512_set1_epi32(step.offset));
                const __mmask16 here = _mm512_mask_cmplt_epi32_mask(unfinished, inside, _mm512_set1_epi32(64 - 9));
                const __m512i four = _mm512_add_epi32(_mm512_mullo_epi32(inside, _mm512_set1_epi32(0x01010101)),
                                                      _mm512_set1_epi32(0x09060300));
                _mm512_store_si512(step.from, four);
                const Lookup weights(at, here);
                for (int d = 0; d < 3; ++d) _mm512_store_si512(step.digit[d], weights.in(digits.get() + d * size));
                from = _mm512_mask_add_epi32(from, here, from, _mm512_set1_epi32(12));
                at = _mm512_mask_add_epi32(at, here, at, _mm512_set1_epi32(static_cast<int32_t>(padded)));
                groups = _mm512_mask_sub_epi32(groups, here, groups, one);
                unfinished = _mm512_test_epi32_mask(groups, groups);
                step.last = unfinished == 0;
            }
            // 16 values on: five pixels and a channel.
            const __mmask16 carry = _mm512_cmpeq_epi32_mask(c, two);
            x = _mm512_add_epi32(x, _mm512_set1_epi32(5));
            x = _mm512_mask_add_epi32(x, carry, x, one);
            c = _mm512_mask_mov_epi32(_mm512_add_epi32(c, one), carry, _mm512_setzero_si512());
        }
    }
};

inline void filter_rows(const uint8_t* const (&rows)[4], const Columns& columns, uint8_t* group) {
    const __m512i by_value = _mm512_set4_epi32(0x0f0b0703, 0x0e0a0602, 0x0d090501, 0x0c080400);
    Sum sums[4];
    for (const auto& step : columns.steps) {
        const __m512i from = _mm512_load_si512(step.from);
        const __m512i digit0 = _mm512_load_si512(step.digit[0]), digit1 = _mm512_load_si512(step.digit[1]);
        const __m512i digit2 = _mm512_load_si512(step.digit[2]);
        for (int r = 0; r < 4; ++r) {
            const __m512i bytes = _mm512_loadu_si512(rows[r] + step.offset);
            sums[r].add(_mm512_permutexvar_epi8(from, bytes), digit0, digit1, digit2);
        }
        if (!step.last) continue;
        _mm512_store_si512(group, _mm512_shuffle_epi8(pack(sums), by_value));
        group += 64;
        for (auto& sum : sums) sum = Sum();
    }
}

inline void blend_rows(const uint8_t* const* groups, int64_t count, const Four* weights, int64_t width,
                       uint8_t* dst) {
    const __m512i in_order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    const int64_t values = 3 * width;
    for (int64_t v = 0; v < values; v += 64) {
        Sum sums[4];
        for (int64_t g = 0; g < count; ++g) {
            const __m512i digit0 = _mm512_set1_epi32(weights[g].digit[0]);
            const __m512i digit1 = _mm512_set1_epi32(weights[g].digit[1]);
            const __m512i digit2 = _mm512_set1_epi32(weights[g].digit[2]);
            for (int i = 0; i < 4; ++i) {
                sums[i].add(_mm512_load_si512(groups[g] + 4 * v + 64 * i), digit0, digit1, digit2);
            }
        }
        const __m512i bytes = _mm512_permutexvar_epi32(in_order, pack(sums));
        const __mmask64 mask = ~__mmask64{0} >> (64 - std::min<int64_t>(64, values - v));
        _mm512_mask_storeu_epi8(dst + v, mask, bytes);
    }
}
