// The Python side of stack.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "stack.h"

namespace py = pybind11;

namespace fastfeed {

namespace {

// The Arrow C data interface's description of an array: https://arrow.apache.org/docs/format/CDataInterface.html
struct ArrowArray {
    int64_t length;
    int64_t null_count;
    int64_t offset;
    int64_t n_buffers;
    int64_t n_children;
    const void** buffers;
    ArrowArray** children;
    ArrowArray* dictionary;
    void (*release)(ArrowArray*);
    void* private_data;
};

using Shape = std::array<int64_t, 3>;

// Pillow exports the pixels of an image row by row and without gaps: an array of bytes for one channel; for three and
// four, an array of lists of four bytes, the fourth of which is padding for RGB. The capsule releases what it holds.
StridedImage arrow_image(const py::handle& capsule, const Shape& shape) {
    const auto* pixels = static_cast<const ArrowArray*>(PyCapsule_GetPointer(capsule.ptr(), "arrow_array"));
    if (pixels == nullptr) throw py::error_already_set();
    const int64_t channels = shape[2], size = channels == 1 ? 1 : 4;
    const bool known = pixels->release != nullptr && pixels->n_children == (size == 1 ? 0 : 1) &&
                       (channels == 1 || channels == 3 || channels == 4);
    const ArrowArray* bytes = known && size == 4 ? pixels->children[0] : pixels;
    if (!known || bytes->n_buffers != 2 || pixels->offset != 0 || bytes->offset != 0 ||
        pixels->length != shape[0] * shape[1] || bytes->length != pixels->length * size) {
        throw py::value_error("stack: a capsule is not that of a Pillow image of the given shape");
    }
    return {static_cast<const uint8_t*>(bytes->buffers[1]), {shape[1] * size, size, 1}};
}

StridedImage buffer_image(const py::buffer_info& info, const Shape& shape) {
    if (info.itemsize != 1 || info.shape != std::vector<py::ssize_t>(shape.begin(), shape.end())) {
        throw py::value_error("stack: a buffer is not of bytes, or not of the given shape");
    }
    return {static_cast<const uint8_t*>(info.ptr), {info.strides[0], info.strides[1], info.strides[2]}};
}

}  // namespace

void bind_stack(py::module_& m) {
    m.def(
        "stack",
        [](const py::tuple& sources, const Shape& shape, uintptr_t dst, int threads) {
            std::vector<py::buffer_info> buffers;  // keep the memory where it is until the copy is done
            std::vector<StridedImage> images;
            buffers.reserve(sources.size());
            images.reserve(sources.size());
            for (const py::handle source : sources) {
                if (PyCapsule_CheckExact(source.ptr())) {
                    images.push_back(arrow_image(source, shape));
                } else {
                    buffers.push_back(py::buffer(py::reinterpret_borrow<py::object>(source)).request());
                    images.push_back(buffer_image(buffers.back(), shape));
                }
                if (images.back().data == nullptr && shape[0] * shape[1] * shape[2] != 0) {
                    throw py::value_error("stack: an image has no memory");
                }
            }
            py::gil_scoped_release release;
            stack(images, shape, reinterpret_cast<uint8_t*>(dst), threads);
        },
        "Copies images of one shape into [len(sources), *shape] uint8 at the address dst, without the GIL.\n"
        "A source is a buffer of bytes (strides of any kind), or the array capsule of a Pillow image.\n"
        "Raises TypeError or ValueError for another source, or one of another shape.",
        py::arg("sources"), py::arg("shape"), py::arg("dst"), py::arg("threads"));
}

}  // namespace fastfeed
