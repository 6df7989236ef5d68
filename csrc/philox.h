// The counter-based generator behind every random choice.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#define FASTFEED_HD __host__ __device__ __forceinline__
#else
#define FASTFEED_HD inline __attribute__((always_inline))
#endif

namespace fastfeed {

struct Words {
    uint32_t word[4];
};

// Philox-4x32-10: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The same as
// fastfeed/data/philox.py.
FASTFEED_HD Words philox(uint32_t key0, uint32_t key1, Words counter) {
    for (int round = 0; round < 10; ++round) {
        const uint64_t p0 = uint64_t{0xD2511F53} * counter.word[0], p1 = uint64_t{0xCD9E8D57} * counter.word[2];
        counter = {{static_cast<uint32_t>(p1 >> 32) ^ counter.word[1] ^ key0, static_cast<uint32_t>(p1),
                    static_cast<uint32_t>(p0 >> 32) ^ counter.word[3] ^ key1, static_cast<uint32_t>(p0)}};
        key0 += 0x9E3779B9;
        key1 += 0xBB67AE85;
    }
    return counter;
}

}  // namespace fastfeed
