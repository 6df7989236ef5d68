#include "permutation.h"

#include <algorithm>
#include <numeric>

#include "philox.h"

namespace fastfeed {
namespace {

// The last word of every counter. It keeps these draws apart from those of fastfeed/data/samplers.py and of the plan,
// which share the seed as key.
constexpr uint32_t PURPOSE = 0x6F726472;

// Uniform in [0, bound), but for a bias below bound / 2^64: D. Lemire, "Fast random integer generation in an interval",
// ACM TOMACS 2019, without the rejection.
int64_t below(int64_t bound, uint64_t random) {
    return static_cast<int64_t>(static_cast<unsigned __int128>(random) * static_cast<uint64_t>(bound) >> 64);
}

}  // namespace

// Fisher and Yates' shuffle, from the front. The targets of a block are drawn before its swaps, so that the processor
// fetches them from memory all at once.
void permutation(int64_t size, uint64_t seed, uint32_t epoch, int64_t* order) {
    constexpr int64_t BLOCK = 256;
    const uint32_t key0 = static_cast<uint32_t>(seed), key1 = static_cast<uint32_t>(seed >> 32);
    int64_t target[BLOCK];
    std::iota(order, order + size, int64_t{0});
    for (int64_t begin = 0; begin < size; begin += BLOCK) {
        const int64_t end = std::min(size, begin + BLOCK);
        for (int64_t i = begin; i < end; i += 2) {
            const uint64_t pair = static_cast<uint64_t>(i) / 2;
            const Words words =
                philox(key0, key1, {{static_cast<uint32_t>(pair), static_cast<uint32_t>(pair >> 32), epoch, PURPOSE}});
            for (int64_t k = 0; k < 2 && i + k < end; ++k) {
                const uint64_t random = uint64_t{words.word[2 * k + 1]} << 32 | words.word[2 * k];
                target[i + k - begin] = i + k + below(size - i - k, random);
                __builtin_prefetch(order + target[i + k - begin], 1);
            }
        }
        for (int64_t i = begin; i < end; ++i) std::swap(order[i], order[target[i - begin]]);
    }
}

}  // namespace fastfeed
