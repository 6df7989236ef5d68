// Arrays as arguments of the extension's functions.
#pragma once

#include <pybind11/numpy.h>

#include <string>

namespace fastfeed {

template <class T>
using Array = pybind11::array_t<T, pybind11::array::c_style>;

// The values of an array of shape [n] or [n, columns]. Throws ValueError, with the names of the function and of its
// argument, for an array of another shape.
template <class T>
const T* values_of(const Array<T>& array, const char* function, const char* name, pybind11::ssize_t n,
                   pybind11::ssize_t columns) {
    const bool fits = columns == 1 ? array.ndim() == 1 && array.shape(0) == n
                                   : array.ndim() == 2 && array.shape(0) == n && array.shape(1) == columns;
    if (fits) return array.data();
    std::string shape = "[" + std::to_string(n) + (columns == 1 ? "" : ", " + std::to_string(columns)) + "]";
    throw pybind11::value_error(std::string(function) + ": " + name + " is not of shape " + shape);
}

}  // namespace fastfeed
