// What the test programs share.
#pragma once

#include <algorithm>
#include <cinttypes>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <initializer_list>
#include <random>
#include <string>

#define CHECK(condition) \
    if (!(condition)) return std::printf("line %d: %s\n", __LINE__, #condition), false

namespace fastfeed {

class Random {
  public:
    explicit Random(uint64_t seed) : engine_(seed) {}
    int64_t from(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
    bool one_in(int64_t n) { return from(1, n) == 1; }
    template <class T = double>
    T real(double low, double high) {
        return std::uniform_real_distribution<T>(static_cast<T>(low), static_cast<T>(high))(engine_);
    }
    template <class T>
    T any(std::initializer_list<T> values) {
        return values.begin()[from(0, static_cast<int64_t>(values.size()) - 1)];
    }
    std::string bytes(int64_t n) {
        std::string result;
        while (static_cast<int64_t>(result.size()) < n) result += static_cast<char>(from(0, 255));
        return result;
    }
    template <class Iterator>
    void shuffle(Iterator begin, Iterator end) {
        std::shuffle(begin, end, engine_);
    }

  private:
    std::mt19937_64 engine_;
};

// A line that was printed is out, even if a sanitizer ends the program next.
inline void print_at_once() { std::setvbuf(stdout, nullptr, _IOLBF, 0); }

// For `program SEED COUNT`: runs test(SEED), test(SEED + 1) and so on until one fails. Each draws all it needs from its
// seed and prints it when it fails, so that `program SEED 1` repeats it.
template <class Test>
bool fuzz(int argc, char** argv, const Test& test) {
    if (argc != 3) return std::printf("usage: %s SEED COUNT\n", argv[0]), false;
    const uint64_t seed = std::strtoull(argv[1], nullptr, 10), count = std::strtoull(argv[2], nullptr, 10);
    for (uint64_t i = 0; i < count; ++i) {
        if (!test(seed + i)) return false;
    }
    return std::printf("cases: %" PRIu64 "\n", count), true;
}

}  // namespace fastfeed
