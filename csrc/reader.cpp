#include "reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <numeric>
#include <system_error>
#include <tuple>

namespace fastfeed {
namespace {

constexpr int64_t kLargest = int64_t{1} << 31;  // bytes of a sample; more is no image, and might be no memory
constexpr int kKeptOpen = 128;                  // of the 1,024 files that a process may commonly have open
constexpr const char* kChanged = "changed while it was read";

std::string words(int error) { return std::generic_category().message(error); }

// Reads exactly `size` bytes; returns why it could not.
std::string read_exactly(int fd, int64_t offset, int64_t size, uint8_t* to) {
    while (size > 0) {
        const ssize_t got = pread(fd, to, size, offset);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return words(errno);
        if (got == 0) return kChanged;
        to += got, offset += got, size -= got;
    }
    return {};
}

void look_at(EncodedSample& sample, const uint8_t* block) {
    if (!sample.error.empty()) {
        sample.size = 0;  // what lies in the block there is of another batch
        return;
    }
    sample.header = image_header(block + sample.start, sample.size);
    if (sample.header.problem != nullptr) sample.error = sample.header.problem;
}

// What is wrong with a file that samples are to be read from.
std::string file_problem(const struct stat& status) {
    if (S_ISDIR(status.st_mode)) return "a folder";
    if (!S_ISREG(status.st_mode)) return "a pipe or a device, not a file";
    return {};
}

int64_t modification_time(const struct stat& status) {
    return status.st_mtim.tv_sec * int64_t{1000000000} + status.st_mtim.tv_nsec;
}

std::string open_shard(const Shard& shard, File& file) {
    file = File(shard.path);
    struct stat status;
    if (!file.is_open() || fstat(file.fd(), &status) != 0) return words(errno);
    std::string problem = file_problem(status);
    if (problem.empty() && (status.st_size != shard.size || modification_time(status) != shard.mtime_ns)) {
        problem = "the shard has changed since its index was read: make the source again";
    }
    return problem;
}

}  // namespace

File::File(const std::string& path) {
    // Not blocking, or a pipe would wait for its writer; for files it makes no difference.
    fd_ = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd_ < 0 && (errno == EMFILE || errno == ENFILE || errno == ENOMEM)) {
        throw std::system_error(errno, std::generic_category(), path);
    }
}

File& File::operator=(File&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
}

void File::close() {
    if (fd_ >= 0) ::close(fd_);
    fd_ = -1;
}

int64_t lay_out(std::vector<EncodedSample>& samples) {
    constexpr int64_t alignment = 64;
    int64_t end = 0;
    for (EncodedSample& sample : samples) {
        sample.start = end;
        end += (sample.size + alignment - 1) / alignment * alignment;
    }
    return end;
}

FileReader::FileReader(Pool& pool, std::vector<std::string> paths)
    : pool_(pool), paths_(std::move(paths)), samples_(paths_.size()), files_(paths_.size()) {
    pool_.run(static_cast<int64_t>(paths_.size()), [this](int64_t i) { open(i); });
    block_size_ = lay_out(samples_);
}

void FileReader::open(size_t i) {
    EncodedSample& sample = samples_[i];
    File file(paths_[i]);
    struct stat status;
    if (!file.is_open() || fstat(file.fd(), &status) != 0) {
        sample.error = words(errno);
        return;
    }
    sample.error = file_problem(status);
    if (sample.error.empty() && status.st_size > kLargest) {
        sample.error = std::to_string(status.st_size) + " bytes: too large for an image, which may have 2 GiB";
    }
    if (!sample.error.empty()) return;
    sample.size = status.st_size;
    if (kept_open_++ < kKeptOpen) files_[i] = std::move(file);
}

std::vector<EncodedSample> FileReader::read(uint8_t* block) {
    pool_.run(static_cast<int64_t>(paths_.size()), [this, block](int64_t i) { read_one(i, block); });
    return std::move(samples_);
}

void FileReader::read_one(size_t i, uint8_t* block) {
    EncodedSample& sample = samples_[i];
    if (!sample.error.empty()) return;
    const File file = files_[i].is_open() ? std::move(files_[i]) : File(paths_[i]);
    sample.error = file.is_open() ? read_exactly(file.fd(), 0, sample.size, block + sample.start) : words(errno);
    struct stat status;
    if (sample.error.empty() && (fstat(file.fd(), &status) != 0 || status.st_size != sample.size)) {
        sample.error = kChanged;
    }
    look_at(sample, block);
}

void read_ranges(Pool& pool, const std::vector<Shard>& shards, const std::vector<Range>& ranges, bool images,
                 std::vector<EncodedSample>& samples, uint8_t* block) {
    // In the order in which they lie there, in runs of one shard: each opens it once, and several are under way.
    std::vector<size_t> order(ranges.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) {
        return std::tie(ranges[a].shard, ranges[a].offset, a) < std::tie(ranges[b].shard, ranges[b].offset, b);
    });
    constexpr size_t longest = 8;
    std::vector<size_t> runs;  // where they begin
    for (size_t i = 0; i < order.size(); ++i) {
        if (i == 0 || i - runs.back() == longest || ranges[order[i]].shard != ranges[order[i - 1]].shard) {
            runs.push_back(i);
        }
    }
    const auto count = static_cast<int64_t>(runs.size());
    runs.push_back(order.size());
    pool.run(count, [&](int64_t run) {
        const size_t begin = runs[run], end = runs[run + 1];
        File file;
        const std::string problem = open_shard(shards[ranges[order[begin]].shard], file);
        for (size_t k = begin; k < end; ++k) {
            EncodedSample& sample = samples[order[k]];
            sample.error = problem;
            if (problem.empty()) {
                sample.error = read_exactly(file.fd(), ranges[order[k]].offset, sample.size, block + sample.start);
            }
            if (images) look_at(sample, block);
        }
    });
}

void read_memory(Pool& pool, const std::vector<const uint8_t*>& sources, std::vector<EncodedSample>& samples,
                 uint8_t* block) {
    pool.run(static_cast<int64_t>(samples.size()), [&](int64_t i) {
        if (samples[i].size > 0) std::memcpy(block + samples[i].start, sources[i], samples[i].size);
        look_at(samples[i], block);
    });
}

}  // namespace fastfeed
