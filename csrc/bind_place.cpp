// The Python side of place.h.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "bind_arrays.h"
#include "place.h"
#include "ticket.h"

namespace py = pybind11;

namespace fastfeed {

void bind_place(py::module_& m) {
    m.def(
        "place",
        [](std::shared_ptr<Pool> pool, const Array<int64_t>& addresses, const Array<int64_t>& sizes,
           const Array<int64_t>& strides, const Array<int64_t>& places, uintptr_t dst,
           const std::array<int64_t, 2>& out_size, const std::array<uint8_t, 3>& fill, py::object keep) {
            const py::ssize_t n = addresses.size();
            const int64_t* address = values_of(addresses, "place", "addresses", n, 1);
            const int64_t* size = values_of(sizes, "place", "sizes", n, 2);
            const int64_t* stride = values_of(strides, "place", "strides", n, 1);
            const int64_t* at = values_of(places, "place", "places", n, 4);
            PlaceArgs args{{}, reinterpret_cast<uint8_t*>(dst), out_size[0], out_size[1], fill};
            args.images.reserve(n);
            for (py::ssize_t i = 0; i < n; ++i, size += 2, at += 4) {
                args.images.push_back({reinterpret_cast<const uint8_t*>(address[i]), size[0], size[1], stride[i], at[0],
                                       at[1], at[2], at[3]});
            }
            const PlaceWork work = place_work(std::move(args));
            Task task = pool->submit(work.pieces, work.piece);
            return std::make_unique<Ticket>(std::move(pool), std::move(task), std::move(keep));
        },
        "Begin to copy RGB images of any sizes to [N, out_h, out_w, 3] uint8 at the address dst, each to its place,\n"
        "and to fill what they leave free; return a Ticket. `keep` keeps the memory alive until it is done.\n"
        "addresses, strides: int64 [N], of the first row, and from row to row in bytes; pixels are three bytes.\n"
        "sizes: int64 [N, 2], heights and widths. places: int64 [N, 4], (top, left, height, width) in the output: of\n"
        "a larger image the top left part is taken, and an image of a single pixel is repeated. out_size: (height,\n"
        "width). fill: red, green and blue.\n"
        "Raises ValueError, with the image's number, for a place that leaves the output or is larger than its image,\n"
        "for sides outside [1, 2^20], for overlapping rows and for arrays of other shapes; TypeError for arrays of\n"
        "other types.",
        py::arg("pool"), py::arg("addresses").noconvert(), py::arg("sizes").noconvert(),
        py::arg("strides").noconvert(), py::arg("places").noconvert(), py::arg("dst"), py::arg("out_size"),
        py::arg("fill"), py::arg("keep"));
}

}  // namespace fastfeed
