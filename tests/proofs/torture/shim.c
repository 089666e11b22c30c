/* Preloaded into a program under test: stands between it and its disk.
 *
 * Every write, sync, truncation and removal of a file below `shim_directory` is an operation, if it
 * is of one of `shim_kinds` and the file's name ends in `shim_suffix`. They are counted, and what
 * `shim_how` says happens to those from number `shim_first` to number `shim_last`: the process
 * dies before, half-way through or after, or the operation fails with `shim_error`. Until
 * `shim_directory` is set nothing is done at all. A line about every operation goes to the file
 * descriptor `shim_reports`, if that is not -1, before it is begun.
 *
 * Python sets these variables through ctypes; see shim.py.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { WRITE = 1, SYNC = 2, TRUNCATE = 4, REMOVE = 8 };
enum { COUNT, DIE_BEFORE, DIE_HALF_WAY, DIE_AFTER, FAIL };

char shim_directory[4096];
char shim_suffix[64];
int shim_kinds = WRITE | SYNC | TRUNCATE | REMOVE;
int shim_how = COUNT;
int shim_error = EIO;
int shim_reports = -1;
long shim_first, shim_last;
long shim_seen;

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

static void report(const char *name, const char *path) {
    char line[4200];
    if (shim_reports < 0) return;
    int length = snprintf(line, sizeof line, "operation %s %s\n", name, path);
    if (NEXT(ssize_t, "write", int, const void *, size_t)(shim_reports, line, length) != length)
        _exit(99);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Return what is to happen to an operation on a path. */
static int planned_for(int kind, const char *name, const char *path) {
    size_t start = strlen(shim_directory), end = strlen(shim_suffix), length = strlen(path);
    if (!start || strncmp(path, shim_directory, start) || (path[start] && path[start] != '/'))
        return COUNT;
    if (!(kind & shim_kinds) || length < end || strcmp(path + length - end, shim_suffix))
        return COUNT;
    long number = __atomic_add_fetch(&shim_seen, 1, __ATOMIC_SEQ_CST);
    report(name, path[start] ? path + start + 1 : ".");
    return shim_first <= number && number <= shim_last ? shim_how : COUNT;
}

static int planned(int kind, const char *name, int fd) {
    char link[64], path[4096];
    int error = errno;
    if (!shim_directory[0]) return COUNT;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = error;
    if (length < 0) return COUNT;
    path[length] = 0;
    return planned_for(kind, name, path);
}

/* `all` and `half` are the operation and the first half of it. */
#define PERFORM(type, plan, all, half)             \
    do {                                           \
        int how = (plan);                          \
        if (how == DIE_BEFORE) die();              \
        if (how == DIE_HALF_WAY) {                 \
            half;                                  \
            die();                                 \
        }                                          \
        if (how == FAIL) {                         \
            errno = shim_error;                    \
            return -1;                             \
        }                                          \
        type result = (all);                       \
        if (how == DIE_AFTER) die();               \
        return result;                             \
    } while (0)

#define IGNORE(call)         \
    do {                     \
        if ((call) < 0) die(); \
    } while (0)

ssize_t write(int fd, const void *data, size_t size) {
    ssize_t (*next)(int, const void *, size_t) = NEXT(ssize_t, "write", int, const void *, size_t);
    PERFORM(ssize_t, planned(WRITE, "write", fd), next(fd, data, size),
            IGNORE(next(fd, data, size / 2)));
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    ssize_t (*next)(int, const void *, size_t, off_t) =
        NEXT(ssize_t, "pwrite", int, const void *, size_t, off_t);
    PERFORM(ssize_t, planned(WRITE, "write", fd), next(fd, data, size, at),
            IGNORE(next(fd, data, size / 2, at)));
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    ssize_t (*next)(int, const void *, size_t, off64_t) =
        NEXT(ssize_t, "pwrite64", int, const void *, size_t, off64_t);
    PERFORM(ssize_t, planned(WRITE, "write", fd), next(fd, data, size, at),
            IGNORE(next(fd, data, size / 2, at)));
}

int fsync(int fd) {
    PERFORM(int, planned(SYNC, "sync", fd), NEXT(int, "fsync", int)(fd), );
}

int fdatasync(int fd) {
    PERFORM(int, planned(SYNC, "sync", fd), NEXT(int, "fdatasync", int)(fd), );
}

static off64_t half_way(int fd, off64_t size) {
    struct stat64 status;
    return fstat64(fd, &status) ? size : (status.st_size + size) / 2;
}

int ftruncate(int fd, off_t size) {
    int (*next)(int, off_t) = NEXT(int, "ftruncate", int, off_t);
    PERFORM(int, planned(TRUNCATE, "truncate", fd), next(fd, size),
            IGNORE(next(fd, half_way(fd, size))));
}

int ftruncate64(int fd, off64_t size) {
    int (*next)(int, off64_t) = NEXT(int, "ftruncate64", int, off64_t);
    PERFORM(int, planned(TRUNCATE, "truncate", fd), next(fd, size),
            IGNORE(next(fd, half_way(fd, size))));
}

int unlink(const char *path) {
    PERFORM(int, planned_for(REMOVE, "remove", path), NEXT(int, "unlink", const char *)(path), );
}
