// Work that a pool does for Python.
#pragma once

#include <pybind11/pybind11.h>

#include <memory>

#include "pool.h"

namespace fastfeed {

// Work under way. Keeps the Python objects whose memory it uses, and its end is waited for before they go.
class Ticket {
  public:
    Ticket(std::shared_ptr<Pool> pool, Task task, pybind11::object keep)
        : pool_(std::move(pool)), task_(std::move(task)), keep_(std::move(keep)) {}
    ~Ticket() {
        try {
            wait();
        } catch (...) {  // a fork left it behind: nothing in this process works on the memory
        }
    }
    Ticket(const Ticket&) = delete;
    Ticket& operator=(const Ticket&) = delete;

    bool done() const { return task_.done(); }
    void wait() const {
        pybind11::gil_scoped_release release;
        pool_->wait(task_);
    }

  private:
    std::shared_ptr<Pool> pool_;
    Task task_;
    pybind11::object keep_;
};

}  // namespace fastfeed
