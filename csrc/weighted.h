// The order of an epoch that is drawn with weights, with replacement.
#pragma once

#include <cstdint>

namespace fastfeed {

// Writes n uniform numbers in [0, 1), multiples of 2^-53: a function of the arguments and of nothing else.
void uniform_draws(int64_t n, uint64_t seed, uint32_t epoch, double* draws);

// For each of n draws in [0, 1), writes the first index whose cumulative share is greater, and how often that index was
// written before. Throws std::invalid_argument for a draw outside of the range.
// cumulative: [size], ascending from 0 or more to 1, with 1 <= size < 2^32.
void invert_distribution(const double* cumulative, int64_t size, const double* draws, int64_t n, int64_t* index,
                         int64_t* copy);

}  // namespace fastfeed
