// The passes of a resizing in plain loops, which compilers turn into vectors: see resample_rows.h.

struct Four {
    int32_t weight[4];
    explicit Four(const int32_t* weights) : weight{weights[0], weights[1], weights[2], weights[3]} {}
};

FASTFEED_INLINE uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> PRECISION, 0, 255)); }

// A group of rows: one after the other.
inline int64_t group_bytes(int64_t width) { return 4 * 3 * width; }

inline void interleave_rows(const uint8_t* const (&rows)[4], int64_t width, uint8_t* group) {
    for (int r = 0; r < 4; ++r) std::memcpy(group + r * 3 * width, rows[r], 3 * width);
}

inline void separate_rows(const uint8_t* group, int64_t width, int64_t rows, uint8_t* dst) {
    std::memcpy(dst, group, rows * 3 * width);
}

struct Columns {
    const Taps& taps;
    int64_t out_w;
    Columns(const Taps& taps_, int64_t out_w_, int64_t) : taps(taps_), out_w(out_w_) {}
};

inline void filter_rows(const uint8_t* const (&rows)[4], const Columns& columns, uint8_t* group) {
    const Taps& taps = columns.taps;
    for (int r = 0; r < 4; ++r) {
        for (int64_t x = 0; x < columns.out_w; ++x, group += 3) {
            const uint8_t* pixel = rows[r] + 3 * int64_t{taps.first[x]};
            int32_t sum[3] = {1 << (PRECISION - 1), 1 << (PRECISION - 1), 1 << (PRECISION - 1)};
            for (int32_t t = 0; t < taps.count[x]; ++t, pixel += 3) {
                const int32_t weight = taps.weights[t * taps.padded + x];
                for (int c = 0; c < 3; ++c) sum[c] += pixel[c] * weight;
            }
            for (int c = 0; c < 3; ++c) group[c] = to_byte(sum[c]);
        }
    }
}

inline void blend_rows(const uint8_t* const* groups, int64_t count, const Four* weights, int64_t width,
                       uint8_t* dst) {
    constexpr int64_t BLOCK = 192;
    const int64_t values = 3 * width;
    for (int64_t v = 0; v < values; v += BLOCK) {
        const int64_t size = std::min(BLOCK, values - v);
        int32_t sum[BLOCK];
        std::fill_n(sum, BLOCK, 1 << (PRECISION - 1));
        for (int64_t g = 0; g < count; ++g) {
            for (int r = 0; r < 4; ++r) {
                const uint8_t* row = groups[g] + r * values + v;
                for (int64_t i = 0; i < size; ++i) sum[i] += row[i] * weights[g].weight[r];
            }
        }
        for (int64_t i = 0; i < size; ++i) dst[v + i] = to_byte(sum[i]);
    }
}
