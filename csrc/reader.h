// Reads whole files on several threads.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "image_size.h"

namespace fastfeed {

struct EncodedFile {
    std::unique_ptr<uint8_t[]> data;
    int64_t size = 0;
    ImageSize image;
    int error = 0;  // errno of the call that failed, or 0
};

// Reads every path; one that cannot be read carries its errno and no data.
std::vector<EncodedFile> read_files(const std::vector<std::string>& paths, int threads);

}  // namespace fastfeed
