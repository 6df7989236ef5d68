#include "reader.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <new>

#include "pool.h"

namespace fastfeed {
namespace {

// Reads into `file`; returns 0 or an errno.
int read_open_file(int fd, EncodedFile& file) {
    struct stat status;
    if (fstat(fd, &status) != 0) return errno;
    if (S_ISDIR(status.st_mode)) return EISDIR;
    if (!S_ISREG(status.st_mode)) return EINVAL;  // a pipe or a device
    file.data.reset(new (std::nothrow) uint8_t[status.st_size > 0 ? status.st_size : 1]);
    if (!file.data) return ENOMEM;
    while (file.size < status.st_size) {
        const ssize_t got = read(fd, file.data.get() + file.size, status.st_size - file.size);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return errno;
        if (got == 0) break;  // the file was cut while we read it; what is left decodes or does not
        file.size += got;
    }
    file.image = image_size(file.data.get(), file.size);
    return 0;
}

}  // namespace

std::vector<EncodedFile> read_files(const std::vector<std::string>& paths, int threads) {
    std::vector<EncodedFile> files(paths.size());
    parallel_for(paths.size(), 4, threads, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            // Not blocking, or a pipe would wait for its writer; for files it makes no difference.
            const int fd = open(paths[i].c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
            if (fd < 0) {
                files[i].error = errno;
                continue;
            }
            files[i].error = read_open_file(fd, files[i]);
            close(fd);
        }
    });
    return files;
}

}  // namespace fastfeed
