// The Python side of resample.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

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
           const std::array<int64_t, 2>& out_size, int filter, const py::object& keep) -> std::unique_ptr<Ticket> {
            const py::ssize_t n = addresses.size();
            const int64_t* address = values_of(addresses, "resample", "addresses", n, 1);
            const int64_t* size = values_of(sizes, "resample", "sizes", n, 2);
            const int64_t* stride = values_of(strides, "resample", "strides", n, 1);
            const double* box = values_of(boxes, "resample", "boxes", n, 4);
            ResampleArgs args{{}, reinterpret_cast<uint8_t*>(dst), out_size[0], out_size[1],
                              static_cast<Filter>(filter)};
            args.images.reserve(n);
            for (py::ssize_t i = 0; i < n; ++i, size += 2, box += 4) {
                args.images.push_back({reinterpret_cast<const uint8_t*>(address[i]), size[0], size[1], stride[i],
                                       box[0], box[1], box[2], box[3]});
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
        "bottom, right) of the part to resize, in pixels. out_size: (height, width). filter: 1 Lanczos, 2 bilinear,\n"
        "3 bicubic, as in PIL.Image.Resampling.\n"
        "Raises ValueError, with the image's number, for a box that is empty or leaves its image, for sides outside\n"
        "[1, 2^20], for overlapping rows and for arrays of other shapes; TypeError for arrays of other types.",
        py::arg("pool"), py::arg("addresses").noconvert(), py::arg("sizes").noconvert(),
        py::arg("strides").noconvert(), py::arg("boxes").noconvert(), py::arg("dst"), py::arg("out_size"),
        py::arg("filter"), py::arg("keep"));
}

}  // namespace fastfeed
