#include "pool.h"

#include <sched.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <deque>
#include <mutex>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

namespace fastfeed {

struct Task::Progress {
    std::function<void(int64_t)> piece;
    int64_t pieces;
    pid_t process;
    std::atomic<int64_t> next{0};
    std::atomic<bool> failed{false};
    std::mutex mutex;
    std::condition_variable changed;
    int64_t finished = 0;      // guarded by mutex
    std::exception_ptr error;  // guarded by mutex
    std::atomic<bool> done{false};

    // Does pieces until none is left to begin.
    void work() {
        int64_t count = 0;
        std::exception_ptr first_error;
        for (int64_t i = next++; i < pieces; i = next++) {
            if (!failed) {  // after an error the rest is counted, but not done
                try {
                    piece(i);
                } catch (...) {
                    failed = true;
                    first_error = std::current_exception();
                }
            }
            ++count;
        }
        if (count == 0) return;
        std::lock_guard<std::mutex> lock(mutex);
        if (first_error && !error) error = first_error;
        finished += count;
        if (finished == pieces) {
            piece = nullptr;  // and what it holds
            done = true;
            changed.notify_all();
        }
    }
};

bool Task::done() const { return progress_->done; }

struct Pool::State {
    const pid_t process = getpid();
    std::mutex mutex;
    std::condition_variable changed;
    std::deque<std::shared_ptr<Task::Progress>> queue;  // tasks with pieces that nobody began, oldest first
    std::vector<std::thread> threads;
    bool stop = false;

    void run() {
        std::unique_lock<std::mutex> lock(mutex);
        while (true) {
            changed.wait(lock, [this] { return stop || !queue.empty(); });
            if (queue.empty()) return;
            const auto task = queue.front();
            lock.unlock();
            task->work();
            lock.lock();
            if (!queue.empty() && queue.front() == task) queue.pop_front();
        }
    }
};

Pool::Pool(int threads) : threads_(threads), state_(new State) {
    if (threads_ <= 0) {
        cpu_set_t allowed;
        threads_ = sched_getaffinity(0, sizeof allowed, &allowed) == 0
                       ? CPU_COUNT(&allowed)
                       : std::max(1u, std::thread::hardware_concurrency());
    }
}

Pool::~Pool() {
    // In a forked child the threads do not exist and the mutex may be locked for ever: leave it all where it is.
    State* state = state_;
    if (state->process != getpid()) return;
    {
        std::lock_guard<std::mutex> lock(state->mutex);
        state->stop = true;
    }
    state->changed.notify_all();
    for (auto& thread : state->threads) thread.join();
    delete state;
}

// Of this process: after a fork the parent's is lost, on purpose, as in the destructor.
Pool::State& Pool::state() {
    State* current = state_;
    if (current->process == getpid()) return *current;
    auto fresh = std::make_unique<State>();
    if (state_.compare_exchange_strong(current, fresh.get())) return *fresh.release();
    return *current;  // another thread was first
}

Task Pool::submit(int64_t pieces, std::function<void(int64_t)> piece) {
    return start(pieces, std::move(piece), std::min<int64_t>(threads_, pieces));
}

void Pool::run(int64_t pieces, const std::function<void(int64_t)>& piece) {
    if (pieces > 1 && threads_ > 1) {
        wait(start(pieces, piece, std::min<int64_t>(threads_, pieces) - 1));
    } else {
        for (int64_t i = 0; i < pieces; ++i) piece(i);
    }
}

Task Pool::start(int64_t pieces, std::function<void(int64_t)> piece, int64_t threads) {
    State& state = this->state();
    auto progress = std::make_shared<Task::Progress>();
    progress->pieces = pieces;
    progress->process = state.process;
    if (pieces <= 0) {
        progress->done = true;
        return Task(progress);
    }
    progress->piece = std::move(piece);
    {
        std::lock_guard<std::mutex> lock(state.mutex);
        state.queue.push_back(progress);
        while (static_cast<int64_t>(state.threads.size()) < threads) {
            try {
                state.threads.emplace_back([&state] { state.run(); });
            } catch (const std::system_error&) {
                break;  // the system refuses more threads: those there are, or who waits, will do it
            }
        }
    }
    if (threads > 1) {
        state.changed.notify_all();
    } else {
        state.changed.notify_one();
    }
    return Task(progress);
}

void Pool::wait(const Task& task) {
    Task::Progress& progress = *task.progress_;
    if (progress.process != getpid()) {  // whose threads do not exist here, and may have held a mutex
        if (progress.done) return;
        throw std::runtime_error("work that was under way in the parent process cannot be waited for after a fork");
    }
    progress.work();
    {
        State& state = this->state();
        std::lock_guard<std::mutex> lock(state.mutex);  // no thread need look at what has no pieces left
        state.queue.erase(std::remove(state.queue.begin(), state.queue.end(), task.progress_), state.queue.end());
    }
    std::unique_lock<std::mutex> lock(progress.mutex);
    progress.changed.wait(lock, [&] { return progress.done.load(); });
    if (progress.error) std::rethrow_exception(progress.error);
}

}  // namespace fastfeed
