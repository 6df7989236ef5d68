#include "finish.h"
#include "parallel.h"

namespace fastfeed {
namespace {

struct CpuLaunch {
    int threads;

    template <class T, int C, bool CHANNELS_LAST>
    void run(const FinishArgs& a) const {
        const T* table = static_cast<const T*>(a.table);
        // 64 rows of 224 RGB pixels are 43 KB of input: long enough to hide the cost of taking a piece.
        parallel_for(a.n * a.h, 64, threads, [&](int64_t begin, int64_t end) {
            for (int64_t row = begin; row < end; ++row) {
                const int64_t n = row / a.h, y = row % a.h;
                // Two loops, so that in each the direction is known when it is compiled.
                if (a.flip != nullptr && a.flip[n] != 0) {
                    for (int64_t x = 0; x < a.w; ++x) finish_pixel<T, C, CHANNELS_LAST>(a, table, n, y, x, true);
                } else {
                    for (int64_t x = 0; x < a.w; ++x) finish_pixel<T, C, CHANNELS_LAST>(a, table, n, y, x, false);
                }
            }
        });
    }
};

}  // namespace

bool finish_cpu(const FinishArgs& args, int threads) { return dispatch_finish(args, CpuLaunch{threads}); }

// The loop is compiled for the baseline of the architecture, so that a wheel runs on every machine of it. A table
// lookup gains nothing from wider vectors: an AVX2 gather takes as long as the eight loads it replaces.
const char* finish_cpu_simd() {
#if defined(__x86_64__)
    return "portable code for any x86-64 (SSE2)";
#elif defined(__aarch64__)
    return "portable code for any aarch64 (NEON)";
#else
    return "portable code";
#endif
}

}  // namespace fastfeed
