// The Python side of permutation.h and weighted.h.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <limits>

#include "permutation.h"
#include "weighted.h"

namespace py = pybind11;

namespace fastfeed {

using Doubles = py::array_t<double, py::array::c_style | py::array::forcecast>;

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
    m.def(
        "uniform_draws",
        [](int64_t n, uint64_t seed, uint32_t epoch) {
            if (n < 0) throw py::value_error("uniform_draws: n is negative");
            py::array_t<double> draws(n);
            double* data = draws.mutable_data();
            {
                py::gil_scoped_release release;
                uniform_draws(n, seed, epoch, data);
            }
            return draws;
        },
        "Return n uniform numbers in [0, 1), float64, made without the GIL.", py::arg("n"), py::arg("seed"),
        py::arg("epoch"));
    m.def(
        "invert_distribution",
        [](const Doubles& cumulative, const Doubles& draws) {
            const int64_t size = cumulative.size(), n = draws.size();
            const double* shares = cumulative.data();
            if (size < 1 || size > std::numeric_limits<uint32_t>::max() || shares[size - 1] != 1.0)
                throw py::value_error("invert_distribution: cumulative shares are to end with 1, and fewer than 2**32");
            py::array_t<int64_t> index(n), copy(n);
            int64_t *index_data = index.mutable_data(), *copy_data = copy.mutable_data();
            const double* draws_data = draws.data();
            {
                py::gil_scoped_release release;
                invert_distribution(shares, size, draws_data, n, index_data, copy_data);
            }
            return py::make_tuple(index, copy);
        },
        "Return the index at which each draw is passed by the cumulative shares, and how often that index came before.",
        py::arg("cumulative"), py::arg("draws"));
}

}  // namespace fastfeed
