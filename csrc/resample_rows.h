// The rows of a resizing. resample.cpp includes this once per instruction set, each time in another namespace, with
// another target for the compiler and after another of resample_baseline.h, resample_avx2.h and resample_avx512.h. So
// neither this file nor those have include guards or include anything.
//
// Rows are made in groups of four. Both passes multiply four bytes, of four columns or of four rows, with four weights.
// Those files have how a group lies in memory (group_bytes, interleave_rows, separate_rows), four weights (Four), the
// horizontal pass (Columns, filter_rows) and the vertical pass (blend_rows).

// ------------------------------------------------------------------------------------------------ weights

template <Filter FILTER>
FASTFEED_INLINE double weight(double x) {
    if constexpr (FILTER == Filter::bilinear) {
        const double distance = x < 0 ? -x : x;
        return distance < 1 ? 1 - distance : 0;
    } else if constexpr (FILTER == Filter::bicubic) {  // Keys's, with a = -1/2
        constexpr double a = -0.5;
        const double d = x < 0 ? -x : x;
        const double near = ((a + 2) * d - (a + 3)) * d * d + 1;
        const double far = (((d - 5) * d + 8) * d - 4) * a;
        return d < 1 ? near : d < 2 ? far : 0;
    } else {
        constexpr double pi = 3.14159265358979323846;
        const auto sinc = [](double value) { return value == 0 ? 1 : std::sin(value * pi) / (value * pi); };
        return x >= -3 && x < 3 ? sinc(x) * sinc(x / 3) : 0;
    }
}

// The taps of outputs [begin, end) of a side.
template <Filter FILTER>
Taps make_taps(const Side& side, int64_t begin, int64_t end) {
    const int64_t outputs = end - begin;
    // At most ceil(2 * support), but for rounding.
    const int64_t most = std::min(side.present, static_cast<int64_t>(2 * side.support) + 2);
    Taps taps(outputs, most);
    int32_t* first = taps.first.get();
    int32_t* count = taps.count.get();
    int32_t longest = 0;
    for (int64_t i = 0; i < taps.padded; ++i) {
        const double middle = side.center(begin + std::min(i, outputs - 1));
        first[i] = side.first(middle);
        count[i] = i < outputs ? side.last(middle) - first[i] : 0;
        longest = std::max(longest, count[i]);
    }
    taps.groups = (longest + 3) / 4;

    const double step = 1 / side.filter_scale;
    const Buffer<double> chunk(4 * taps.groups * CHUNK);
    for (int64_t begin_chunk = 0; begin_chunk < taps.padded; begin_chunk += CHUNK) {
        double middle[CHUNK], sum[CHUNK] = {};
        for (int i = 0; i < CHUNK; ++i) middle[i] = side.center(begin + begin_chunk + i);
        const int32_t* chunk_first = first + begin_chunk;
        const int32_t* chunk_count = count + begin_chunk;
        for (int32_t t = 0; t < 4 * taps.groups; ++t) {
            double* values = chunk.get() + t * CHUNK;
            for (int i = 0; i < CHUNK; ++i) {
                const double value =
                    weight<FILTER>((static_cast<double>(t + chunk_first[i]) - middle[i] + 0.5) * step);
                values[i] = t < chunk_count[i] ? value : 0;
                sum[i] += values[i];
            }
        }
        for (int32_t t = 0; t < 4 * taps.groups; ++t) {
            const double* values = chunk.get() + t * CHUNK;
            int32_t* weights = taps.weights.get() + t * taps.padded + begin_chunk;
            for (int i = 0; i < CHUNK; ++i) {
                const double scaled = (sum[i] != 0 ? values[i] / sum[i] : values[i]) * (1 << PRECISION);
                weights[i] = static_cast<int32_t>(scaled < 0 ? scaled - 0.5 : scaled + 0.5);
            }
        }
    }
    for (int64_t i = 0; i < taps.padded; ++i) first[i] -= static_cast<int32_t>(side.at);
    return taps;
}

inline Taps make_taps(const Side& side, Filter filter, int64_t begin, int64_t end) {
    return filter == Filter::bilinear  ? make_taps<Filter::bilinear>(side, begin, end)
           : filter == Filter::bicubic ? make_taps<Filter::bicubic>(side, begin, end)
                                       : make_taps<Filter::lanczos>(side, begin, end);
}

// -------------------------------------------------------------------------------------------------- an image

// Rows of an image, for functions that read up to SLACK bytes past their end.
class Source {
  public:
    explicit Source(const ResampleImage& image)
        : image_(image), row_bytes_(3 * image.width), copies_(4 * (row_bytes_ + SLACK)) {}

    // Rows [first, first + 4): the last row again for those below it. Until the next call.
    void rows(int64_t first, const uint8_t* (&rows)[4]) const {
        const uint8_t* last = image_.pixels + (image_.height - 1) * image_.stride;
        for (int r = 0; r < 4; ++r) {
            rows[r] = image_.pixels + std::min(first + r, image_.height - 1) * image_.stride;
            if (last - rows[r] >= SLACK) continue;
            uint8_t* copy = copies_.get() + r * (row_bytes_ + SLACK);
            std::memcpy(copy, rows[r], row_bytes_);
            rows[r] = copy;
        }
    }

  private:
    const ResampleImage& image_;
    int64_t row_bytes_;
    Buffer<uint8_t> copies_;
};

// The vertical pass. Calls make(row, group) for the groups of input rows, one after the other, and
// put(i, groups, count, weights) for every output. Only as many groups are kept as an output needs.
template <class Make, class Put>
void for_each_output(const Taps& down, int64_t outputs, int64_t size, const Make& make, const Put& put) {
    const int64_t first = down.first[0], most = down.groups + 1;
    const Buffer<uint8_t> ring(most * size);
    std::vector<const uint8_t*> groups(most);
    std::vector<int32_t> weights(4 * most);
    std::vector<Four> fours;
    fours.reserve(most);
    int64_t made = 0;
    for (int64_t i = 0; i < outputs; ++i) {
        const int64_t from = down.first[i] - first, group = from / 4, shift = from % 4;
        const int64_t count = (shift + down.count[i] + 3) / 4;
        for (; made < group + count; ++made) make(first + 4 * made, ring.get() + made % most * size);
        std::fill(weights.begin(), weights.end(), 0);
        for (int64_t t = 0; t < down.count[i]; ++t) weights[shift + t] = down.weights[t * down.padded + i];
        fours.clear();
        for (int64_t g = 0; g < count; ++g) {
            groups[g] = ring.get() + (group + g) % most * size;
            fours.emplace_back(&weights[4 * g]);
        }
        put(i, groups.data(), count, fours.data());
    }
}

// Output rows [begin, end) of image n.
inline void resample_rows(const ResampleArgs& args, int64_t n, int64_t begin, int64_t end) {
    const ResampleImage& image = args.images[n];
    const int64_t top = image.output.top, left = image.output.left;
    const Taps across = make_taps(horizontal_side(image), image.filter, left, left + args.out_w);
    const Taps down = make_taps(vertical_side(image), image.filter, top + begin, top + end);
    const Columns columns(across, args.out_w, image.width);
    const Source source(image);
    const int64_t outputs = end - begin, out_bytes = 3 * args.out_w, row_bytes = 3 * image.width;
    uint8_t* dst = args.dst + (n * args.out_h + begin) * out_bytes;
    const uint8_t* rows[4];

    if (!vertical_first(image)) {
        const auto make = [&](int64_t row, uint8_t* group) {
            source.rows(row, rows);
            filter_rows(rows, columns, group);
        };
        const auto put = [&](int64_t i, const uint8_t* const* groups, int64_t count, const Four* weights) {
            blend_rows(groups, count, weights, args.out_w, dst + i * out_bytes);
        };
        for_each_output(down, outputs, group_bytes(args.out_w), make, put);
        return;
    }
    const Buffer<uint8_t> blended(4 * (row_bytes + SLACK)), filtered(group_bytes(args.out_w));
    const auto make = [&](int64_t row, uint8_t* group) {
        source.rows(row, rows);
        interleave_rows(rows, image.width, group);
    };
    const auto put = [&](int64_t i, const uint8_t* const* groups, int64_t count, const Four* weights) {
        uint8_t* row = blended.get() + i % 4 * (row_bytes + SLACK);
        blend_rows(groups, count, weights, image.width, row);
        if (i % 4 < 3 && i + 1 < outputs) return;
        for (int r = 0; r < 4; ++r) rows[r] = blended.get() + std::min<int64_t>(r, i % 4) * (row_bytes + SLACK);
        filter_rows(rows, columns, filtered.get());
        separate_rows(filtered.get(), args.out_w, i % 4 + 1, dst + i / 4 * 4 * out_bytes);
    };
    for_each_output(down, outputs, group_bytes(image.width), make, put);
}
