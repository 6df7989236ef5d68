// Memory for outputs that are made again and again. A C library gives large freed blocks back to the system, and the
// next one's pages cost more to get than the last pass takes to fill them.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <new>
#include <vector>

namespace fastfeed {

// Keeps up to `spares` freed blocks. Not for several threads at once: Python's lock is held by whoever calls it.
class Recycler {
  public:
    struct Block {
        void* data;
        int64_t size;
    };

    explicit Recycler(int spares) : spares_(spares) {}
    ~Recycler() {
        for (const Block& block : free_) std::free(block.data);
    }
    Recycler(const Recycler&) = delete;
    Recycler& operator=(const Recycler&) = delete;

    // A block of at least `size` bytes, at a multiple of 64. Throws std::bad_alloc.
    Block take(int64_t size) {
        // The smallest that is large enough, but no giant for a dwarf.
        auto best = free_.end();
        for (auto block = free_.begin(); block != free_.end(); ++block) {
            if (block->size >= size && block->size / 2 <= size && (best == free_.end() || block->size <= best->size)) {
                best = block;
            }
        }
        if (best != free_.end()) {
            const Block block = *best;
            free_.erase(best);
            return block;
        }
        constexpr int64_t alignment = 64;
        const int64_t rounded = (std::max<int64_t>(size, 1) + alignment - 1) / alignment * alignment;
        void* data = std::aligned_alloc(alignment, rounded);
        if (data == nullptr) throw std::bad_alloc();
        return {data, rounded};
    }

    void give(Block block) {
        free_.push_back(block);
        if (free_.size() <= spares_) return;
        std::free(free_.front().data);  // the one that waited longest
        free_.erase(free_.begin());
    }

  private:
    size_t spares_;
    std::vector<Block> free_;
};

}  // namespace fastfeed
