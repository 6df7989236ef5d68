// fastfeed._C. Takes raw addresses and a stream handle, so that one build serves every PyTorch; the Python
// callers (fastfeed/data/finish.py, sources.py) check shapes, types and devices.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cerrno>
#include <stdexcept>

#include "finish.h"
#include "reader.h"

namespace py = pybind11;

namespace fastfeed {
namespace {

FinishArgs finish_args(uintptr_t src, uintptr_t dst, uintptr_t flip, uintptr_t table,
                       const std::array<int64_t, 4>& shape, int element_size, bool channels_last) {
    return {reinterpret_cast<const uint8_t*>(src),
            reinterpret_cast<void*>(dst),
            reinterpret_cast<const uint8_t*>(flip),
            reinterpret_cast<const void*>(table),
            shape[0],
            shape[1],
            shape[2],
            static_cast<int>(shape[3]),
            element_size,
            channels_last};
}

void bind_finish(py::module_& m) {
    m.def(
        "finish_cpu",
        [](uintptr_t src, uintptr_t dst, uintptr_t flip, uintptr_t table, const std::array<int64_t, 4>& shape,
           int element_size, bool channels_last, int threads) {
            if (!finish_cpu(finish_args(src, dst, flip, table, shape, element_size, channels_last), threads)) {
                throw std::invalid_argument("finish: unsupported number of channels or element size");
            }
        },
        py::arg("src"), py::arg("dst"), py::arg("flip"), py::arg("table"), py::arg("shape"),
        py::arg("element_size"), py::arg("channels_last"), py::arg("threads"),
        py::call_guard<py::gil_scoped_release>());
#ifdef FASTFEED_CUDA
    m.def(
        "finish_cuda",
        [](uintptr_t src, uintptr_t dst, uintptr_t flip, uintptr_t table, const std::array<int64_t, 4>& shape,
           int element_size, bool channels_last, int device, uintptr_t stream) {
            const char* error = finish_cuda(finish_args(src, dst, flip, table, shape, element_size, channels_last),
                                            device, reinterpret_cast<void*>(stream));
            if (error != nullptr) throw std::runtime_error(std::string("finish: CUDA error: ") + error);
        },
        py::arg("src"), py::arg("dst"), py::arg("flip"), py::arg("table"), py::arg("shape"),
        py::arg("element_size"), py::arg("channels_last"), py::arg("device"), py::arg("stream"),
        py::call_guard<py::gil_scoped_release>());
#endif
}

// A NumPy array that owns the file's bytes.
py::array_t<uint8_t> to_array(EncodedFile& file) {
    uint8_t* data = file.data.release();
    py::capsule owner(data, [](void* p) { delete[] static_cast<uint8_t*>(p); });
    return py::array_t<uint8_t>({file.size}, {1}, data, owner);
}

void bind_reader(py::module_& m) {
    m.def(
        "read_files",
        [](const std::vector<std::string>& paths, int threads) {
            std::vector<EncodedFile> files;
            {
                py::gil_scoped_release release;
                files = read_files(paths, threads);
            }
            py::list data;
            py::array_t<int64_t> sizes({static_cast<py::ssize_t>(paths.size()), py::ssize_t{2}});
            auto size = sizes.mutable_unchecked<2>();
            for (size_t i = 0; i < files.size(); ++i) {
                if (files[i].error != 0) {
                    errno = files[i].error;
                    PyErr_SetFromErrnoWithFilename(PyExc_OSError, paths[i].c_str());
                    throw py::error_already_set();
                }
                size(i, 0) = files[i].image.known() ? files[i].image.height : 0;
                size(i, 1) = files[i].image.known() ? files[i].image.width : 0;
                data.append(to_array(files[i]));
            }
            return py::make_tuple(data, sizes);
        },
        "Reads files on several threads. Returns a list of uint8 arrays and an int64 array [N, 2] of heights and\n"
        "widths from the image headers, 0 where the header is not that of a JPEG, PNG, BMP or WebP image.\n"
        "Raises OSError, with the file's name, for the first file that cannot be read.",
        py::arg("paths"), py::arg("threads"));
}

py::dict build_info() {
    py::dict info;
    info["version"] = FASTFEED_VERSION;
    info["compiler"] = FASTFEED_COMPILER;
#ifdef FASTFEED_CUDA
    info["cuda"] = FASTFEED_CUDA;
    info["cuda_arch"] = FASTFEED_CUDA_ARCH;
#else
    info["cuda"] = py::none();
    info["cuda_arch"] = py::none();
#endif
    return info;
}

}  // namespace
}  // namespace fastfeed

PYBIND11_MODULE(_C, m) {
    m.doc() = "fastfeed's C++/CUDA extension: file reader and last pass.";
    m.def("build_info", &fastfeed::build_info, "What the extension was built from and with.");
    m.def("simd", &fastfeed::finish_cpu_simd, "The instruction set that the CPU path of the last pass uses.");
    fastfeed::bind_finish(m);
    fastfeed::bind_reader(m);
}
