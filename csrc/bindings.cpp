// fastfeed._C. Takes raw addresses and a stream handle, so that one build serves every PyTorch; the Python
// callers (fastfeed/data/finish.py, sources.py) check shapes, types and devices.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <memory>
#include <stdexcept>

#include "finish_cpu.h"
#include "recycler.h"
#include "ticket.h"

namespace py = pybind11;

namespace fastfeed {

void bind_augment(py::module_& m);   // bind_augment.cpp
void bind_order(py::module_& m);     // bind_order.cpp
void bind_place(py::module_& m);     // bind_place.cpp
void bind_reader(py::module_& m);    // bind_reader.cpp
void bind_resample(py::module_& m);  // bind_resample.cpp
void bind_stack(py::module_& m);     // bind_stack.cpp

namespace {

void bind_pool(py::module_& m) {
    py::class_<Pool, std::shared_ptr<Pool>>(m, "Pool", "Threads that work without Python.")
        .def(py::init<int>(), py::arg("threads"), "0: as many as the process may use.")
        .def_property_readonly("threads", &Pool::threads);
    py::class_<Ticket>(m, "Ticket", "Work that a Pool does in the background.")
        .def("done", &Ticket::done)
        .def("wait", &Ticket::wait, "Help with it, and wait until it is done.");
    m.def(
        "copy",
        [](std::shared_ptr<Pool> pool, uintptr_t src, uintptr_t dst, int64_t bytes, py::object keep) {
            constexpr int64_t grain = 1 << 20;
            Task task = pool->submit((bytes + grain - 1) / grain, [=](int64_t i) {
                std::memcpy(reinterpret_cast<char*>(dst) + i * grain, reinterpret_cast<const char*>(src) + i * grain,
                            std::min(grain, bytes - i * grain));
            });
            return std::make_unique<Ticket>(std::move(pool), std::move(task), std::move(keep));
        },
        "Copy memory in the background.", py::arg("pool"), py::arg("src"), py::arg("dst"), py::arg("bytes"),
        py::arg("keep"));
}

void bind_recycler(py::module_& m) {
    py::class_<Recycler, std::shared_ptr<Recycler>>(m, "Recycler", "Memory that is used again when its array dies.")
        .def(py::init<int>(), py::arg("spares"), "Keep up to `spares` freed blocks.")
        .def(
            "take",
            [](std::shared_ptr<Recycler> recycler, int64_t bytes) {
                struct Owner {
                    std::shared_ptr<Recycler> recycler;
                    Recycler::Block block;
                };
                auto owner = std::make_unique<Owner>();
                owner->block = recycler->take(bytes);
                owner->recycler = std::move(recycler);
                const auto* data = static_cast<uint8_t*>(owner->block.data);
                py::capsule capsule(owner.get(), [](void* p) {
                    std::unique_ptr<Owner> dead(static_cast<Owner*>(p));
                    dead->recycler->give(dead->block);
                });
                owner.release();
                return py::array_t<uint8_t>({bytes}, {1}, data, capsule);
            },
            "Return a uint8 array of `bytes` bytes, of any content, at a multiple of 64.", py::arg("bytes"));
}

FinishArgs finish_args(uintptr_t src, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides,
                       uintptr_t dst, int output, bool channels_last, uintptr_t parameters,
                       const Normalizer& normalizer, const std::array<float, 4>& fill) {
    FinishArgs args{};
    args.src = reinterpret_cast<const uint8_t*>(src);
    args.stride_n = strides[0];
    args.stride_h = strides[1];
    args.stride_w = strides[2];
    args.stride_c = strides[3];
    args.dst = reinterpret_cast<void*>(dst);
    args.parameters = reinterpret_cast<const SampleParameters*>(parameters);
    args.n = shape[0];
    args.h = shape[1];
    args.w = shape[2];
    args.c = static_cast<int>(shape[3]);
    args.output = static_cast<Output>(output);
    args.channels_last = channels_last;
    args.normalizer = normalizer;
    std::copy(fill.begin(), fill.end(), args.fill);
    return args;
}

void bind_finish(py::module_& m) {
    py::class_<Normalizer>(m, "Normalizer", "The constants of (byte / 255 - mean) / std; with a factor, of (byte * factor - mean) / std.")
        .def(py::init([](const std::vector<float>& mean, const std::vector<float>& std, float factor) {
                 if (mean.size() != std.size() || mean.empty() || mean.size() > 4) {
                     throw std::invalid_argument("Normalizer: expected 1 to 4 means and as many stds");
                 }
                 return make_normalizer(mean.data(), std.data(), static_cast<int>(mean.size()), factor);
             }),
             py::arg("mean"), py::arg("std"), py::arg("factor") = 0.0f)
        .def_readonly("fused", &Normalizer::fused, "Whether it needs no divisions.");
    m.def(
        "finish_cpu",
        [](std::shared_ptr<Pool> pool, uintptr_t src, const std::array<int64_t, 4>& shape,
           const std::array<int64_t, 4>& strides, uintptr_t dst, int output, bool channels_last, uintptr_t parameters,
           const Normalizer& normalizer, const std::array<float, 4>& fill,
           const py::object& keep) -> std::unique_ptr<Ticket> {
            const FinishWork work = finish_work(
                finish_args(src, shape, strides, dst, output, channels_last, parameters, normalizer, fill));
            if (keep.is_none()) {
                py::gil_scoped_release release;
                pool->run(work.pieces, work.piece);
                return nullptr;
            }
            Task task = pool->submit(work.pieces, work.piece);
            return std::make_unique<Ticket>(std::move(pool), std::move(task), keep);
        },
        "Do the last pass, or, with an object that keeps its memory alive, begin it and return a Ticket.",
        py::arg("pool"), py::arg("src"), py::arg("shape"), py::arg("strides"), py::arg("dst"), py::arg("output"),
        py::arg("channels_last"), py::arg("parameters"), py::arg("normalizer"), py::arg("fill"), py::arg("keep"));
#ifdef FASTFEED_CUDA
    m.def(
        "finish_cuda",
        [](uintptr_t src, const std::array<int64_t, 4>& shape, const std::array<int64_t, 4>& strides, uintptr_t dst,
           int output, bool channels_last, uintptr_t parameters, const Normalizer& normalizer,
           const std::array<float, 4>& fill, uintptr_t stream) {
            const char* error = finish_cuda(
                finish_args(src, shape, strides, dst, output, channels_last, parameters, normalizer, fill),
                reinterpret_cast<void*>(stream));
            if (error != nullptr) throw std::runtime_error(std::string("finish: CUDA error: ") + error);
        },
        py::arg("src"), py::arg("shape"), py::arg("strides"), py::arg("dst"), py::arg("output"),
        py::arg("channels_last"), py::arg("parameters"), py::arg("normalizer"), py::arg("fill"), py::arg("stream"),
        py::call_guard<py::gil_scoped_release>());
#endif
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
    m.doc() = "fastfeed's C++/CUDA extension: file reader, thread pool, stacking, resizing and placing of images, last "
              "pass.";
    m.def("build_info", &fastfeed::build_info, "What the extension was built from and with.");
    m.def("simd", &fastfeed::finish_simd, "The instruction set that the CPU path of the last pass uses.");
    fastfeed::bind_pool(m);
    fastfeed::bind_recycler(m);
    fastfeed::bind_finish(m);
    fastfeed::bind_reader(m);
    fastfeed::bind_augment(m);
    fastfeed::bind_order(m);
    fastfeed::bind_place(m);
    fastfeed::bind_resample(m);
    fastfeed::bind_stack(m);
}
