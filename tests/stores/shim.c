/* Preloaded into a test's child: fails fsync and fdatasync of files whose names end in SHIM_SUFFIX,
 * as often as the number in the file SHIM_COUNT says, which is counted down. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static int fails(int fd) {
    char link[64], path[4096], text[16] = {0};
    const char *suffix = getenv("SHIM_SUFFIX"), *count = getenv("SHIM_COUNT");
    if (!suffix || !count) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    size_t end = strlen(suffix);
    if (length < (ssize_t)end || memcmp(path + length - end, suffix, end)) return 0;
    int file = open(count, O_RDWR);
    if (file < 0) return 0;
    long left = read(file, text, sizeof text - 1) > 0 ? atol(text) : 0;
    if (left > 0) {
        int written = snprintf(text, sizeof text, "%-8ld", left - 1);
        if (pwrite(file, text, written, 0) != written) abort();
    }
    close(file);
    if (left > 0) errno = EIO;
    return left > 0;
}

int fsync(int fd) {
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    return fails(fd) ? -1 : next(fd);
}

int fdatasync(int fd) {
    int (*next)(int) = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    return fails(fd) ? -1 : next(fd);
}
