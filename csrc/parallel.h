// A parallel loop for short, memory-bound work.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace fastfeed {

// Calls body(begin, end) over [0, n) in pieces of `grain`, on up to `threads` threads (0: one per core), the
// caller's among them. Rethrows the first exception after every thread has stopped.
//
// Threads are started per call: about 30 µs each, and in exchange no pool that a fork() would leave without
// its threads (PyTorch's workers fork) and nothing to shut down at interpreter exit.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
    if (threads <= 0) threads = std::max(1u, std::thread::hardware_concurrency());
    const int64_t pieces = (n + grain - 1) / grain;
    const int helpers = static_cast<int>(std::min<int64_t>(threads, pieces)) - 1;

    std::atomic<int64_t> next{0};
    std::exception_ptr error;
    std::mutex error_mutex;
    auto work = [&] {
        try {
            for (int64_t i = next++; i < pieces; i = next++) body(i * grain, std::min(n, (i + 1) * grain));
        } catch (...) {
            std::lock_guard<std::mutex> lock(error_mutex);
            if (!error) error = std::current_exception();
            next = pieces;
        }
    };
    std::vector<std::thread> pool;
    pool.reserve(std::max(helpers, 0));
    for (int i = 0; i < helpers; ++i) {
        try {
            pool.emplace_back(work);
        } catch (const std::system_error&) {
            break;  // the system refuses more threads: the ones there are do the rest
        }
    }
    work();
    for (auto& thread : pool) thread.join();
    if (error) std::rethrow_exception(error);
}

}  // namespace fastfeed
