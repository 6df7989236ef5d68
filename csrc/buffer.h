// Memory for intermediate values.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace fastfeed {

// Memory that is not initialised, at a multiple of 64.
template <class T>
class Buffer {
  public:
    explicit Buffer(int64_t size)
        : data_(static_cast<T*>(::operator new(static_cast<size_t>(size) * sizeof(T), std::align_val_t{64}))) {}
    T* get() const { return data_.get(); }
    T& operator[](int64_t i) const { return data_.get()[i]; }

  private:
    struct Delete {
        void operator()(T* data) const { ::operator delete(data, std::align_val_t{64}); }
    };
    std::unique_ptr<T, Delete> data_;
};

}  // namespace fastfeed
