/* Preloaded into a child of the simulation of power cuts: appends to the file POWER_LOG what reaches
 * the files of the directory POWER_DIRECTORY, in order: creations, writes, truncations, removals,
 * renamings and synchronisations, and the marks that the program itself sets.
 *
 * A record is: kind (a byte), two numbers of eight bytes, length of what follows (eight bytes), that.
 * One lock is held from before a call until its record is written, so that the order is the real one.
 * What is written through a mapping (only the "-shm" of SQLite, which it makes anew) is not seen. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define DESCRIPTORS 4096

static pthread_mutex_t order = PTHREAD_MUTEX_INITIALIZER;
static char directory[4096];
static size_t length;
static int journal = -1;
static char is_watched[DESCRIPTORS];

__attribute__((constructor)) static void begin(void) {
    const char *where = getenv("POWER_DIRECTORY"), *log = getenv("POWER_LOG");
    if (!where || !log) return;
    snprintf(directory, sizeof directory, "%s", where);
    length = strlen(directory);
    journal = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
    if (journal < 0) abort();
}

static void put(char kind, uint64_t first, uint64_t second, const void *data, uint64_t size) {
    char head[25];
    head[0] = kind;
    memcpy(head + 1, &first, 8);
    memcpy(head + 9, &second, 8);
    memcpy(head + 17, &size, 8);
    struct iovec parts[2] = {{head, sizeof head}, {(void *)data, size}};
    if (syscall(SYS_writev, journal, parts, 2) != (ssize_t)(sizeof head + size)) abort();
}

/* The name of a file that is in the directory itself, or NULL. */
static const char *inside(const char *path) {
    if (journal < 0 || strncmp(path, directory, length) || path[length] != '/') return NULL;
    return strchr(path + length + 1, '/') ? NULL : path + length + 1;
}

static int watched(int fd) {
    return journal >= 0 && fd >= 0 && fd < DESCRIPTORS && is_watched[fd];
}

static uint64_t inode(int fd) {
    struct stat status;
    if (fstat(fd, &status)) abort();
    return status.st_ino;
}

static int opened(int (*next)(const char *, int, ...), const char *path, int flags, mode_t mode) {
    const char *name = inside(path);
    int is_directory = journal >= 0 && !strcmp(path, directory);
    if (!name && !is_directory) return next(path, flags, mode);
    struct stat status;
    pthread_mutex_lock(&order);
    int is_new = lstat(path, &status) != 0;
    int fd = next(path, flags, mode);
    if (fd >= DESCRIPTORS) abort();
    if (fd >= 0) {
        is_watched[fd] = 1;
        if (is_new) put('c', inode(fd), 0, name, strlen(name));
        else if (flags & O_TRUNC) put('t', inode(fd), 0, NULL, 0);
    }
    pthread_mutex_unlock(&order);
    return fd;
}

#define OPEN(function) \
    int function(const char *path, int flags, ...) { \
        va_list rest; \
        va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        return opened(NEXT(function), path, flags, mode); \
    }
OPEN(open)
OPEN(open64)

int close(int fd) {
    if (!watched(fd)) return NEXT(close)(fd);
    pthread_mutex_lock(&order);
    is_watched[fd] = 0;
    int result = NEXT(close)(fd);
    pthread_mutex_unlock(&order);
    return result;
}

ssize_t write(int fd, const void *data, size_t size) {
    if (!watched(fd)) return NEXT(write)(fd, data, size);
    pthread_mutex_lock(&order);
    int is_appending = fcntl(fd, F_GETFL) & O_APPEND;
    off_t at = lseek(fd, 0, is_appending ? SEEK_END : SEEK_CUR);
    ssize_t result = NEXT(write)(fd, data, size);
    if (result > 0) put('w', inode(fd), at, data, result);
    pthread_mutex_unlock(&order);
    return result;
}

#define PWRITE(function, offset_t) \
    ssize_t function(int fd, const void *data, size_t size, offset_t at) { \
        if (!watched(fd)) return NEXT(function)(fd, data, size, at); \
        pthread_mutex_lock(&order); \
        ssize_t result = NEXT(function)(fd, data, size, at); \
        if (result > 0) put('w', inode(fd), at, data, result); \
        pthread_mutex_unlock(&order); \
        return result; \
    }
PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

#define TRUNCATE(function, offset_t) \
    int function(int fd, offset_t size) { \
        if (!watched(fd)) return NEXT(function)(fd, size); \
        pthread_mutex_lock(&order); \
        int result = NEXT(function)(fd, size); \
        if (!result) put('t', inode(fd), size, NULL, 0); \
        pthread_mutex_unlock(&order); \
        return result; \
    }
TRUNCATE(ftruncate, off_t)
TRUNCATE(ftruncate64, off64_t)

#define SYNC(function) \
    int function(int fd) { \
        if (!watched(fd)) return NEXT(function)(fd); \
        pthread_mutex_lock(&order); \
        int result = NEXT(function)(fd); \
        if (!result) put('s', inode(fd), 0, NULL, 0); \
        pthread_mutex_unlock(&order); \
        return result; \
    }
SYNC(fsync)
SYNC(fdatasync)

int unlink(const char *path) {
    const char *name = inside(path);
    if (!name) return NEXT(unlink)(path);
    pthread_mutex_lock(&order);
    int result = NEXT(unlink)(path);
    if (!result) put('u', 0, 0, name, strlen(name));
    pthread_mutex_unlock(&order);
    return result;
}

int rename(const char *from, const char *to) {
    const char *old = inside(from), *new = inside(to);
    if (!old && !new) return NEXT(rename)(from, to);
    if (!old || !new) abort();
    char both[8192];
    int size = snprintf(both, sizeof both, "%s/%s", old, new);
    pthread_mutex_lock(&order);
    int result = NEXT(rename)(from, to);
    if (!result) put('r', 0, 0, both, size);
    pthread_mutex_unlock(&order);
    return result;
}

/* Called by the program: what it knows at this moment. */
void power_mark(const char *text) {
    pthread_mutex_lock(&order);
    put('m', 0, 0, text, strlen(text));
    pthread_mutex_unlock(&order);
}
