// The order of a shuffled epoch.
#pragma once

#include <cstdint>

namespace fastfeed {

// Writes a uniformly random permutation of [0, size) to `order`: a function of the arguments and of nothing else.
void permutation(int64_t size, uint64_t seed, uint32_t epoch, int64_t* order);

}  // namespace fastfeed
