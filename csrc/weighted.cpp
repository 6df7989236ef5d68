#include "weighted.h"

#include <algorithm>
#include <stdexcept>
#include <vector>

#include "philox.h"

namespace fastfeed {
namespace {

// The last word of every counter, as in permutation.cpp: an epoch is either shuffled or drawn with weights.
constexpr uint32_t PURPOSE = 0x6F726473;

constexpr int64_t BLOCK = 256;  // draws whose memory is fetched at once

}  // namespace

void uniform_draws(int64_t n, uint64_t seed, uint32_t epoch, double* draws) {
    const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    for (int64_t i = 0; i < n; i += 2) {
        const uint64_t pair = static_cast<uint64_t>(i) / 2;
        const Words words =
            philox(key0, key1, {{static_cast<uint32_t>(pair), static_cast<uint32_t>(pair >> 32), epoch, PURPOSE}});
        for (int64_t k = 0; k < 2 && i + k < n; ++k) {
            const uint64_t random = uint64_t{words.word[2 * k + 1]} << 32 | words.word[2 * k];
            draws[i + k] = static_cast<double>(random >> 11) * 0x1p-53;
        }
    }
}

// With a guide table: H.-C. Chen and Y. Asau, "On generating random variates from an empirical distribution", AIIE
// Transactions 1974. [0, 1) is cut into equal cells, at least as many as there are indices, and the search of a draw
// begins at the first index that its cell may need. A draw goes over at most one index on average, whatever the weights
// are, for every cell is as likely as any other. The number of cells is a power of 2, so that their edges are exact.
void invert_distribution(const double* cumulative, int64_t size, const double* draws, int64_t n, int64_t* index,
                         int64_t* copy) {
    int64_t cells = 1;
    while (cells < size) cells *= 2;
    const double scale = static_cast<double>(cells);
    std::vector<uint32_t> guide(cells), seen(size);
    for (int64_t cell = 0, i = 0; cell < cells; ++cell) {
        while (cumulative[i] * scale <= static_cast<double>(cell)) ++i;  // ends at the 1 of the last index
        guide[cell] = static_cast<uint32_t>(i);
    }
    int64_t cell[BLOCK];
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t count = std::min(BLOCK, n - begin);
        for (int64_t k = 0; k < count; ++k) {
            const double draw = draws[begin + k];
            if (!(draw >= 0 && draw < 1)) throw std::invalid_argument("a draw is outside of [0, 1)");
            cell[k] = static_cast<int64_t>(draw * scale);
            __builtin_prefetch(&guide[cell[k]]);
        }
        for (int64_t k = 0; k < count; ++k) {
            cell[k] = guide[cell[k]];
            __builtin_prefetch(cumulative + cell[k]);
            __builtin_prefetch(&seen[cell[k]], 1);
        }
        for (int64_t k = 0; k < count; ++k) {
            int64_t i = cell[k];
            while (cumulative[i] <= draws[begin + k]) ++i;
            index[begin + k] = i;
            copy[begin + k] = seen[i]++;
        }
    }
}

}  // namespace fastfeed
