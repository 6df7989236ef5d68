// The Python side of augment.h.
#include "augment.h"

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <stdexcept>

#include "ticket.h"

namespace py = pybind11;

namespace fastfeed {

void bind_augment(py::module_& m) {
    using Kinds = py::array_t<uint8_t, py::array::c_style>;
    using Magnitudes = py::array_t<float, py::array::c_style>;
    using KernelSizes = py::array_t<int32_t, py::array::c_style>;
    m.def(
        "augment",
        [](std::shared_ptr<Pool> pool, uintptr_t address, const std::array<int64_t, 3>& shape, const Kinds& kind,
           const Magnitudes& magnitude, const KernelSizes& kernel_size, const std::array<uint8_t, 3>& fill,
           bool bilinear, const py::object& keep) -> std::unique_ptr<Ticket> {
            const auto same = [&](const py::array& other, py::ssize_t ndim) {
                return kind.ndim() == 2 && other.ndim() == ndim && kind.shape(0) == other.shape(0) &&
                       kind.shape(1) == other.shape(1);
            };
            if (!same(magnitude, 2) || !same(kernel_size, 3) || kernel_size.shape(2) != 2 ||
                kind.shape(0) != shape[0]) {
                throw std::invalid_argument("augment: expected kinds [N, K], magnitudes [N, K] and kernel sizes "
                                            "[N, K, 2] for N = " + std::to_string(shape[0]) + " images");
            }
            AugmentArgs args{};
            args.images = reinterpret_cast<uint8_t*>(address);
            args.n = shape[0];
            args.h = shape[1];
            args.w = shape[2];
            args.operations = kind.shape(1);
            args.kind.assign(kind.data(), kind.data() + kind.size());
            args.magnitude.assign(magnitude.data(), magnitude.data() + magnitude.size());
            args.kernel_size.assign(kernel_size.data(), kernel_size.data() + kernel_size.size());
            args.fill = fill;
            args.bilinear = bilinear;
            const AugmentWork work = augment_work(std::move(args));
            if (keep.is_none()) {
                py::gil_scoped_release release;
                pool->run(work.pieces, work.piece);
                return nullptr;
            }
            Task task = pool->submit(work.pieces, work.piece);
            return std::make_unique<Ticket>(std::move(pool), std::move(task), keep);
        },
        "Do operations on contiguous uint8 images [N, H, W, 3] in place, or, with an object that keeps their memory\n"
        "alive, begin to and return a Ticket. kind is uint8 [N, K], magnitude float32 [N, K] and kernel_size int32\n"
        "[N, K, 2], height and width, of blurs; all are copied. With bilinear, shears and rotations\n"
        "interpolate, or they take the nearest pixel. Raises ValueError for arrays of another shape,\n"
        "unknown kinds, and magnitudes or kernels that a kind cannot have.",
        py::arg("pool"), py::arg("address"), py::arg("shape"), py::arg("kind").noconvert(),
        py::arg("magnitude").noconvert(), py::arg("kernel_size").noconvert(), py::arg("fill"), py::arg("bilinear"),
        py::arg("keep"));
}

}  // namespace fastfeed
