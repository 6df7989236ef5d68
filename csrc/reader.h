// Reads the samples of a batch into one block of memory, on several threads, and looks at their headers.
#pragma once

#include <atomic>
#include <cstdint>
#include <string>
#include <vector>

#include "image_header.h"
#include "pool.h"

namespace fastfeed {

struct EncodedSample {
    int64_t start = 0, size = 0;  // its place in the block, in bytes; starts are multiples of 64
    std::string error;            // why it cannot be used; empty if it can be, as far as its header tells
    ImageHeader header;
};

// An open file. Throws std::system_error if the process, not the file, is why it cannot be opened.
class File {
  public:
    File() = default;
    explicit File(const std::string& path);
    ~File() { close(); }
    File(File&& other) noexcept : fd_(other.fd_) { other.fd_ = -1; }
    File& operator=(File&& other) noexcept;

    int fd() const { return fd_; }
    bool is_open() const { return fd_ >= 0; }
    void close();

  private:
    int fd_ = -1;
};

// Whole files. Two steps, because the block's size is known only when all are open.
class FileReader {
  public:
    FileReader(Pool& pool, std::vector<std::string> paths);
    int64_t block_size() const { return block_size_; }
    // Fills a block of block_size() bytes at a multiple of 64. Returns what it holds; to be called once.
    std::vector<EncodedSample> read(uint8_t* block);

  private:
    void open(size_t i);
    void read_one(size_t i, uint8_t* block);

    Pool& pool_;
    std::vector<std::string> paths_;
    std::vector<EncodedSample> samples_;
    std::vector<File> files_;
    std::atomic<int> kept_open_{0};
    int64_t block_size_ = 0;
};

// A file that samples lie in, as it was when they were found there.
struct Shard {
    std::string path;
    int64_t size, mtime_ns;
};

struct Range {
    int64_t shard, offset, size;
};

// Sets the samples' places and returns the size of their block.
int64_t lay_out(std::vector<EncodedSample>& samples);

// Fills the block with parts of files; one that has changed is an error of its samples. `samples` are laid out, of the
// ranges' sizes, and `images` says whether they are images, whose headers are read.
void read_ranges(Pool& pool, const std::vector<Shard>& shards, const std::vector<Range>& ranges, bool images,
                 std::vector<EncodedSample>& samples, uint8_t* block);

// Fills the block with images that are in memory already: one address per sample.
void read_memory(Pool& pool, const std::vector<const uint8_t*>& sources, std::vector<EncodedSample>& samples,
                 uint8_t* block);

}  // namespace fastfeed
