// The Python side of reader.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <cerrno>
#include <memory>
#include <stdexcept>
#include <system_error>

#include "reader.h"
#include "recycler.h"

namespace py = pybind11;

namespace fastfeed {
namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style | py::array::forcecast>;

// Memory that goes back to the recycler when the last array over it dies.
class Block {
  public:
    Block(std::shared_ptr<Recycler> recycler, int64_t size) : recycler_(std::move(recycler)) {
        // Batches differ in size by a little: with room of up to an eighth more, one's block serves the next.
        int64_t step = 64;
        while (step * 8 < size) step *= 2;
        block_ = recycler_->take((size + step - 1) / step * step);
    }
    ~Block() { recycler_->give(block_); }
    Block(const Block&) = delete;
    Block& operator=(const Block&) = delete;
    uint8_t* data() const { return static_cast<uint8_t*>(block_.data); }

  private:
    std::shared_ptr<Recycler> recycler_;
    Recycler::Block block_;
};

py::list arrays(std::unique_ptr<Block> block, const std::vector<EncodedSample>& samples) {
    const uint8_t* data = block->data();
    const py::capsule owner(block.get(), [](void* p) { delete static_cast<Block*>(p); });
    block.release();
    py::list result(samples.size());
    for (size_t i = 0; i < samples.size(); ++i) {
        result[i] = py::array_t<uint8_t>({samples[i].size}, {1}, data + samples[i].start, owner);
    }
    return result;
}

// The system's encoding is Python's to know; nothing else than its messages is not ASCII.
py::object error_text(const EncodedSample& sample) {
    if (sample.error.empty()) return py::none();
    return py::reinterpret_steal<py::object>(PyUnicode_DecodeLocale(sample.error.c_str(), "surrogateescape"));
}

py::list errors(const std::vector<EncodedSample>& samples) {
    py::list result(samples.size());
    for (size_t i = 0; i < samples.size(); ++i) result[i] = error_text(samples[i]);
    return result;
}

py::tuple images(std::unique_ptr<Block> block, const std::vector<EncodedSample>& samples) {
    const auto n = static_cast<py::ssize_t>(samples.size());
    py::array_t<int64_t> sizes({n, py::ssize_t{2}});
    py::array_t<uint8_t> orientations(n);
    auto size = sizes.mutable_unchecked<2>();
    auto orientation = orientations.mutable_unchecked<1>();
    for (py::ssize_t i = 0; i < n; ++i) {
        size(i, 0) = samples[i].header.height;
        size(i, 1) = samples[i].header.width;
        orientation(i) = samples[i].header.orientation;
    }
    return py::make_tuple(arrays(std::move(block), samples), sizes, orientations, errors(samples));
}

// Does work without the GIL; what the process lacks becomes Python's OSError.
template <class Work>
auto without_gil(const Work& work) {
    try {
        py::gil_scoped_release release;
        return work();
    } catch (const std::system_error& error) {
        // what() is "path: words"; the path is Python's to decode.
        std::string path = error.what();
        path.resize(path.size() - std::min(path.size(), error.code().message().size() + 2));
        errno = error.code().value();
        PyErr_SetFromErrnoWithFilename(PyExc_OSError, path.c_str());
        throw py::error_already_set();
    }
}

std::vector<Shard> to_shards(const std::vector<std::string>& paths, const Array<int64_t>& stamps) {
    const auto stamp = stamps.unchecked<2>();
    if (stamp.shape(0) != static_cast<py::ssize_t>(paths.size()) || stamp.shape(1) != 2) {
        throw py::value_error("read_ranges: expected a size and a time for each path");
    }
    std::vector<Shard> shards;
    for (size_t i = 0; i < paths.size(); ++i) shards.push_back({paths[i], stamp(i, 0), stamp(i, 1)});
    return shards;
}

std::vector<Range> to_ranges(const Array<int64_t>& array, size_t shards) {
    const auto values = array.unchecked<2>();
    if (values.shape(1) != 3) throw py::value_error("read_ranges: expected [N, 3]: shard, offset and size");
    std::vector<Range> ranges;
    for (py::ssize_t i = 0; i < values.shape(0); ++i) {
        const Range range{values(i, 0), values(i, 1), values(i, 2)};
        if (range.shard < 0 || range.shard >= static_cast<int64_t>(shards) || range.offset < 0 || range.size < 0) {
            throw py::value_error("read_ranges: a range of no shard, or of a negative offset or size");
        }
        ranges.push_back(range);
    }
    return ranges;
}

}  // namespace

void bind_reader(py::module_& m) {
    m.def(
        "read_files",
        [](Pool& pool, std::shared_ptr<Recycler> recycler, std::vector<std::string> paths) {
            auto reader = without_gil([&] { return std::make_unique<FileReader>(pool, std::move(paths)); });
            auto block = std::make_unique<Block>(std::move(recycler), reader->block_size());
            const auto samples = without_gil([&] { return reader->read(block->data()); });
            return images(std::move(block), samples);
        },
        "Read image files on the pool's threads, without the GIL, into one block of memory.\n"
        "Returns N uint8 arrays; heights and widths, int64 [N, 2], 0 where unknown; EXIF orientations, uint8 [N]; and\n"
        "for each file None, or why it cannot be used. Raises OSError where the process has too many open files.",
        py::arg("pool"), py::arg("recycler"), py::arg("paths"));
    m.def(
        "read_ranges",
        [](Pool& pool, std::shared_ptr<Recycler> recycler, const std::vector<std::string>& paths,
           const Array<int64_t>& stamps, const Array<int64_t>& array, bool are_images) -> py::tuple {
            const auto shards = to_shards(paths, stamps);
            const auto ranges = to_ranges(array, shards.size());
            std::vector<EncodedSample> samples(ranges.size());
            for (size_t i = 0; i < ranges.size(); ++i) samples[i].size = ranges[i].size;
            auto block = std::make_unique<Block>(std::move(recycler), lay_out(samples));
            without_gil([&] { read_ranges(pool, shards, ranges, are_images, samples, block->data()); });
            if (are_images) return images(std::move(block), samples);
            return py::make_tuple(arrays(std::move(block), samples), errors(samples));
        },
        "Read parts of files, `ranges` [N, 3] of shard, offset and size, as read_files does. `stamps` [S, 2] holds\n"
        "each shard's size and time of modification (ns); one that has others now is an error of its samples. With\n"
        "images=False the bytes may be anything; returns the arrays and the errors.",
        py::arg("pool"), py::arg("recycler"), py::arg("paths"), py::arg("stamps"), py::arg("ranges"),
        py::arg("images") = true);
    m.def(
        "read_memory",
        [](Pool& pool, std::shared_ptr<Recycler> recycler, const std::vector<py::buffer>& sources) {
            std::vector<py::buffer_info> buffers;
            std::vector<const uint8_t*> addresses;
            std::vector<EncodedSample> samples(sources.size());
            for (size_t i = 0; i < sources.size(); ++i) {
                buffers.push_back(sources[i].request());
                const py::buffer_info& info = buffers.back();
                if (info.ndim != 1 || info.itemsize != 1 || info.strides[0] != 1) {
                    throw py::value_error("read_memory: expected buffers of bytes");
                }
                addresses.push_back(static_cast<const uint8_t*>(info.ptr));
                samples[i].size = info.size;
            }
            auto block = std::make_unique<Block>(std::move(recycler), lay_out(samples));
            without_gil([&] { read_memory(pool, addresses, samples, block->data()); });
            return images(std::move(block), samples);
        },
        "Copy images that are in memory, each a buffer of bytes, into one block, as read_files does.", py::arg("pool"),
        py::arg("recycler"), py::arg("sources"));
}

}  // namespace fastfeed
