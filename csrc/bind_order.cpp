// The Python side of permutation.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include "permutation.h"

namespace py = pybind11;

namespace fastfeed {

void bind_order(py::module_& m) {
    m.def(
        "permutation",
        [](int64_t size, uint64_t seed, uint32_t epoch) {
            if (size < 0) throw py::value_error("permutation: size is negative");
            py::array_t<int64_t> order(size);
            int64_t* data = order.mutable_data();
            {
                py::gil_scoped_release release;
                permutation(size, seed, epoch, data);
            }
            return order;
        },
        "Return a uniformly random permutation of range(size), int64, made without the GIL.", py::arg("size"),
        py::arg("seed"), py::arg("epoch"));
}

}  // namespace fastfeed
