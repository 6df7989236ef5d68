// The pool of threads, for the thread sanitizer: tasks from several threads, exceptions, its end with work under way,
// threads that the system refuses, and forks. pool_threads NAME runs one test; the names stand at the end.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <system_error>
#include <thread>
#include <vector>

#include "pool.h"
#include "testing.h"

namespace fastfeed {
namespace {

// Every piece counts in a place of its own that no lock guards: done twice, or not ordered before the end of `wait`,
// it is an error or a race.
struct Counted {
    explicit Counted(int64_t pieces) : count(std::make_shared<std::vector<int>>(pieces)) {}
    std::shared_ptr<std::vector<int>> count;
    std::function<void(int64_t)> piece() const {
        return [count = count](int64_t i) { ++(*count)[i]; };
    }
    bool all_once() const {
        for (const int c : *count) {
            if (c != 1) return false;
        }
        return true;
    }
};

bool every_piece_once() {
    for (const int threads : {1, 2, 3, 8}) {
        Pool pool(threads);
        CHECK(pool.threads() == threads);
        for (const int64_t pieces : {0, 1, 2, 3, 7, 1000}) {
            const Counted run(pieces), submitted(pieces);
            pool.run(pieces, run.piece());
            CHECK(run.all_once());
            const Task task = pool.submit(pieces, submitted.piece());
            pool.wait(task);
            CHECK(task.done() && submitted.all_once());
            CHECK(submitted.count.use_count() == 1);  // the task is over, and with it what it held
            pool.wait(task);                          // again
            CHECK(submitted.all_once());
        }
    }
    CHECK(Pool(0).threads() >= 1 && Pool(-1).threads() >= 1);
    return true;
}

// Nobody waits for it but by looking.
bool done_without_wait() {
    Pool pool(2);
    const Counted counted(100);
    const Task task = pool.submit(100, counted.piece());
    while (!task.done()) std::this_thread::yield();
    CHECK(counted.all_once());
    return true;
}

bool many_small_tasks() {
    Pool pool(3);
    std::vector<std::pair<Counted, Task>> tasks;
    for (int i = 0; i < 2000; ++i) {
        const Counted counted(i % 4);
        tasks.emplace_back(counted, pool.submit(i % 4, counted.piece()));
        if (i % 3 == 0) pool.wait(tasks[i / 2].second);
    }
    for (auto& [counted, task] : tasks) {
        pool.wait(task);
        CHECK(counted.all_once());
    }
    return true;
}

// One thread's tasks among those of others; several threads wait for one task.
bool several_callers() {
    Pool pool(3);
    const Counted shared(500);
    const Task task = pool.submit(500, shared.piece());
    std::atomic<int> right{0};
    std::vector<std::thread> callers;
    for (int t = 0; t < 4; ++t) {
        callers.emplace_back([&] {
            bool ok = true;
            for (int i = 0; i < 100; ++i) {
                const Counted run(5), submitted(3);
                const Task own = pool.submit(3, submitted.piece());
                pool.run(5, run.piece());
                pool.wait(own);
                ok = ok && run.all_once() && submitted.all_once();
            }
            pool.wait(task);
            right += ok && shared.all_once();
        });
    }
    for (auto& caller : callers) caller.join();
    CHECK(right == 4);
    return true;
}

// A piece may use the pool that does it.
bool pieces_that_run_pieces() {
    Pool pool(2);
    std::vector<Counted> inner(20, Counted(0));
    for (auto& one : inner) one = Counted(10);
    pool.run(20, [&](int64_t i) { pool.run(10, inner[i].piece()); });
    for (const auto& one : inner) CHECK(one.all_once());
    return true;
}

bool exceptions() {
    for (const int threads : {1, 4}) {
        Pool pool(threads);
        for (int round = 0; round < 100; ++round) {
            std::atomic<int> thrown{0};
            const Task task = pool.submit(50, [&](int64_t i) {
                if (i % 10 == 9) {
                    ++thrown;
                    throw std::runtime_error("piece " + std::to_string(i));
                }
            });
            for (int i = 0; i < 2; ++i) {  // the same from every wait
                try {
                    pool.wait(task);
                    CHECK(false);
                } catch (const std::runtime_error& error) {
                    CHECK(std::strncmp(error.what(), "piece ", 6) == 0);
                }
            }
            CHECK(task.done() && thrown >= 1 && thrown <= 4);  // a thread stops at the first that it knows of
            const Counted after(10);
            pool.run(10, after.piece());
            CHECK(after.all_once());
            try {
                pool.run(1, [](int64_t) { throw 1; });
                CHECK(false);
            } catch (int) {
            }
        }
    }
    return true;
}

bool end_with_work_under_way() {
    for (int round = 0; round < 100; ++round) {
        const Counted counted(30);
        {
            Pool pool(2);
            for (int i = 0; i < 5; ++i) {
                pool.submit(6, [counted, i](int64_t j) { ++(*counted.count)[6 * i + j]; });
            }
        }
        CHECK(counted.all_once());
    }
    { Pool never_used(3); }
    return true;
}

bool parallel_ranges() {
    for (const int64_t n : {0, 1, 7, 8, 9, 100}) {
        const Counted counted(n);
        parallel_for(n, 8, 3, [&](int64_t begin, int64_t end) {
            for (int64_t i = begin; i < end; ++i) ++(*counted.count)[i];
        });
        CHECK(counted.all_once());
    }
    return true;
}

// Whether the system can start a thread.
bool can_start_thread() {
    try {
        std::thread([] {}).join();
        return true;
    } catch (const std::system_error&) {
        return false;
    }
}

// The threads that there are, or who waits, do the work of those that the system refuses; later work starts them.
bool refused_threads() {
    pthread_attr_t usual, endless;
    CHECK(pthread_getattr_default_np(&usual) == 0 && pthread_getattr_default_np(&endless) == 0);
    CHECK(pthread_attr_setstacksize(&endless, size_t{1} << 60) == 0);  // larger than any address space
    for (const int64_t before : {0, 1, 2}) {
        Pool pool(4);
        pool.wait(pool.submit(before, [](int64_t) {}));
        CHECK(pthread_setattr_default_np(&endless) == 0 && !can_start_thread());
        for (int i = 0; i < 3; ++i) {
            const Counted run(10), submitted(10), alone(10);
            pool.run(10, run.piece());
            pool.wait(pool.submit(10, submitted.piece()));
            CHECK(run.all_once() && submitted.all_once());
            const Task task = pool.submit(10, alone.piece());
            while (before > 0 && !task.done()) std::this_thread::yield();
            pool.wait(task);
            CHECK(alone.all_once());
        }
        CHECK(pthread_setattr_default_np(&usual) == 0 && can_start_thread());
        const Counted counted(4);
        std::atomic<int> begun{0};
        const Task task = pool.submit(4, [&, piece = counted.piece()](int64_t i) {
            for (++begun; begun < 4;) std::this_thread::yield();  // which takes four threads
            piece(i);
        });
        while (!task.done()) std::this_thread::yield();
        CHECK(counted.all_once());
    }
    return true;
}

// ------------------------------------------------------------------------------------------------ forks

// Whether a child made by fork() ends well.
template <class Body>
bool in_child(const Body& body) {
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);  // a child that hangs is ended
        const bool right = body();
        std::fflush(stdout);
        _exit(right ? 0 : 1);
    }
    int status = 0;
    return waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

// A child uses the pool that its parent keeps busy, refuses to wait for the parent's task, and makes children itself;
// another ends it at once, whoever held its locks and waited for its work in the parent.
bool fork_while_busy() {
    auto pool = std::make_unique<Pool>(2);
    std::atomic<bool> stop{false};
    std::thread submitter([&] {  // holds the pool's locks at any moment
        while (!stop) pool->run(4, [](int64_t) {});
    });
    bool right = true;
    for (int i = 0; i < 50; ++i) {
        const Counted counted(4);
        const Task task = pool->submit(4, counted.piece());
        const Task slow = pool->submit(4, [](int64_t) { usleep(200); });
        right = right && in_child([&] {
            try {
                if (!slow.done()) {
                    pool->wait(slow);
                    CHECK(false);
                }
            } catch (const std::runtime_error&) {
            }
            if (task.done()) pool->wait(task);
            const Counted own(10), submitted(10);
            pool->run(10, own.piece());
            pool->wait(pool->submit(10, submitted.piece()));
            CHECK(own.all_once() && submitted.all_once());
            CHECK(in_child([&] {
                const Counted grandchild(10);
                pool->run(10, grandchild.piece());
                return grandchild.all_once();
            }));
            Pool another(2);
            const Counted last(10);
            another.run(10, last.piece());
            return last.all_once();
        });
        right = right && in_child([&] {
            pool.reset();
            return true;
        });
        pool->wait(task);
        pool->wait(slow);
        right = right && counted.all_once();
    }
    stop = true;
    submitter.join();
    CHECK(right);
    return true;
}

// A child ends the pool that it was given, whether or not it used it.
bool fork_and_end() {
    auto pool = std::make_unique<Pool>(2);
    pool->run(4, [](int64_t) {});
    CHECK(in_child([&] {
        pool.reset();
        return true;
    }));
    CHECK(in_child([&] {
        const Counted counted(10);
        pool->run(10, counted.piece());
        pool.reset();
        return counted.all_once();
    }));
    const Counted counted(10);
    pool->run(10, counted.piece());
    CHECK(counted.all_once());
    return true;
}

// The first uses of a pool in a child, all at once.
bool fork_and_several_callers() {
    Pool pool(2);
    for (int i = 0; i < 20; ++i) {
        CHECK(in_child([&] {
            std::atomic<int> right{0}, ready{0};
            std::vector<std::thread> callers;
            for (int t = 0; t < 4; ++t) {
                callers.emplace_back([&] {
                    const Counted counted(20);
                    for (++ready; ready < 4;) {
                    }
                    pool.wait(pool.submit(20, counted.piece()));
                    right += counted.all_once();
                });
            }
            for (auto& caller : callers) caller.join();
            return right == 4;
        }));
    }
    return true;
}

const struct {
    const char* name;
    bool (*test)();
} TESTS[] = {
    {"every_piece_once", every_piece_once},
    {"done_without_wait", done_without_wait},
    {"many_small_tasks", many_small_tasks},
    {"several_callers", several_callers},
    {"pieces_that_run_pieces", pieces_that_run_pieces},
    {"exceptions", exceptions},
    {"end_with_work_under_way", end_with_work_under_way},
    {"parallel_ranges", parallel_ranges},
    {"refused_threads", refused_threads},
    {"fork_while_busy", fork_while_busy},
    {"fork_and_end", fork_and_end},
    {"fork_and_several_callers", fork_and_several_callers},
};

}  // namespace
}  // namespace fastfeed

int main(int argc, char** argv) {
    fastfeed::print_at_once();  // or a child prints what its parent has printed, too
    for (const auto& [name, test] : fastfeed::TESTS) {
        if (argc == 2 && std::strcmp(argv[1], name) == 0) return test() ? 0 : 1;
    }
    std::printf("usage: pool_threads NAME\n");
    return 2;
}
