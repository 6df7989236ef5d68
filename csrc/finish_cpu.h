// The last pass on the processor.
#pragma once

#include "finish.h"
#include "pool.h"

namespace fastfeed {

// The pass as pieces of work for a pool: call piece(i) for every i in [0, pieces).
struct FinishWork {
    int64_t pieces;
    std::function<void(int64_t)> piece;
};

// Throws std::invalid_argument for a number of channels other than 1, 3 or 4. `args.parameters` is read when a piece is
// done, and so are the pixels.
FinishWork finish_work(const FinishArgs& args);

// The instruction set that the pass uses on this machine.
const char* finish_simd();

}  // namespace fastfeed
