// A pool of threads for short, memory-bound work that needs no Python.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>

namespace fastfeed {

// Work that a pool was given: `pieces` calls of a function, in any order and on any thread.
class Task {
  public:
    bool done() const;

  private:
    friend class Pool;
    struct Progress;
    explicit Task(std::shared_ptr<Progress> progress) : progress_(std::move(progress)) {}
    std::shared_ptr<Progress> progress_;
};

// Threads are started when work for them comes, and kept. A child made by fork(), which has none of them, starts
// its own; work that was under way in the parent cannot be waited for in the child.
class Pool {
  public:
    explicit Pool(int threads);  // 0: as many as the process may use
    ~Pool();                     // finishes what it was given
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return threads_; }

    // Gives the work to `threads` threads and returns at once.
    Task submit(int64_t pieces, std::function<void(int64_t)> piece);

    // Helps with the task, then waits for the rest of it. Rethrows the first exception of a piece.
    // Throws std::runtime_error for a task from before a fork().
    void wait(const Task& task);

    // Does the work on `threads` threads, the caller's among them, and waits.
    void run(int64_t pieces, const std::function<void(int64_t)>& piece);

  private:
    struct State;
    State& state();
    Task start(int64_t pieces, std::function<void(int64_t)> piece, int64_t threads);

    int threads_;
    std::atomic<State*> state_;
};

// Calls body(begin, end) over [0, n) in ranges of `grain`, on up to `threads` threads (0: one per core) that are
// started for it: about 30 µs each.
template <class Body>
void parallel_for(int64_t n, int64_t grain, int threads, const Body& body) {
    const int64_t pieces = (n + grain - 1) / grain;
    Pool(threads).run(pieces, [&](int64_t i) { body(i * grain, std::min(n, (i + 1) * grain)); });
}

}  // namespace fastfeed
