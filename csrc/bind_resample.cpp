// The Python side of resample.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <optional>

#include "bind_arrays.h"
#include "resample.h"
#include "ticket.h"

namespace py = pybind11;

namespace fastfeed {

void bind_resample(py::module_& m) {
    m.def(
        "resample",
        [](std::shared_ptr<Pool> pool, const Array<int64_t>& addresses, const Array<int64_t>& sizes,
           const Array<int64_t>& strides, const Array<double>& boxes, uintptr_t dst,
           const std::array<int64_t, 2>& out_size, const Array<int64_t>& filters, const py::object& keep,
           const std::optional<Array<int64_t>>& inputs,
           const std::optional<Array<int64_t>>& outputs) -> std::unique_ptr<Ticket> {
            const py::ssize_t n = addresses.size();
            const int64_t* address = values_of(addresses, "resample", "addresses", n, 1);
            const int64_t* size = values_of(sizes, "resample", "sizes", n, 2);
            const int64_t* stride = values_of(strides, "resample", "strides", n, 1);
            const double* box = values_of(boxes, "resample", "boxes", n, 4);
            const int64_t* filter = values_of(filters, "resample", "filters", n, 1);
            const int64_t* input = inputs ? values_of(*inputs, "resample", "inputs", n, 4) : nullptr;
            const int64_t* output = outputs ? values_of(*outputs, "resample", "outputs", n, 4) : nullptr;
            const auto part = [](const int64_t* parts, py::ssize_t i, int64_t height, int64_t width) {
                if (parts == nullptr) return Part{0, 0, height, width};
                return Part{parts[4 * i], parts[4 * i + 1], parts[4 * i + 2], parts[4 * i + 3]};
            };
            ResampleArgs args{{}, reinterpret_cast<uint8_t*>(dst), out_size[0], out_size[1]};
            args.images.reserve(n);
            for (py::ssize_t i = 0; i < n; ++i, size += 2, box += 4) {
                args.images.push_back({reinterpret_cast<const uint8_t*>(address[i]), size[0], size[1], stride[i],
                                       box[0], box[1], box[2], box[3], static_cast<Filter>(filter[i]),
                                       part(input, i, size[0], size[1]), part(output, i, out_size[0], out_size[1])});
            }
            const ResampleWork work = resample_work(std::move(args), pool->threads());
            if (keep.is_none()) {
                py::gil_scoped_release release;
                pool->run(work.pieces, work.piece);
                return nullptr;
            }
            Task task = pool->submit(work.pieces, work.piece);
            return std::make_unique<Ticket>(std::move(pool), std::move(task), keep);
        },
        "Resize RGB images of any sizes to [N, out_h, out_w, 3] uint8 at the address dst, to the very bytes of\n"
        "Pillow's Image.resize; or, with an object that keeps the memory alive, begin it and return a Ticket.\n"
        "addresses, strides: int64 [N], of the first row, and from row to row in bytes; pixels are three bytes, and\n"
        "nothing beside them is read. sizes: int64 [N, 2], heights and widths. boxes: float64 [N, 4], (top, left,\n"
        "bottom, right) of the part to resize, in pixels. out_size: (height, width). filters: int64 [N], 1 Lanczos,\n"
        "2 bilinear, 3 bicubic, as in PIL.Image.Resampling.\n"
        "inputs: int64 [N, 4], where only parts of larger images are in memory: (top, left) of what is there, and\n"
        "(height, width) of the whole image, whose pixels `boxes` count then. outputs: int64 [N, 4], where only parts\n"
        "of larger results are wanted: (top, left) of what is, and (height, width) of the whole result.\n"
        "Raises ValueError, with the image's number, for a box that is empty or leaves its image, for sides outside\n"
        "[1, 2^20], for overlapping rows, for parts that leave their wholes, for pixels that are needed and not in\n"
        "memory, for another filter, and for arrays of other shapes; TypeError for arrays of other types.",
        py::arg("pool"), py::arg("addresses").noconvert(), py::arg("sizes").noconvert(),
        py::arg("strides").noconvert(), py::arg("boxes").noconvert(), py::arg("dst"), py::arg("out_size"),
        py::arg("filters").noconvert(), py::arg("keep"), py::arg("inputs").noconvert() = py::none(),
        py::arg("outputs").noconvert() = py::none());
}

}  // namespace fastfeed
