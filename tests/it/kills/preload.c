/* Kills the program at its n-th call that changes something below a folder.
 *
 * KILL_BELOW  the folder, absolute and without links; nothing is counted without it
 * KILL_AT     which call to die at, from 1; 0 or absent: none
 * KILL_TORN   at a call that writes: write half of it before dying
 * KILL_LOG    a file outside the folder to which a line is added for every call: `number name path`
 *
 * Only calls that go through the C library's names are seen, which those of Rust's standard library do.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static char below[PATH_MAX];
static char cwd[PATH_MAX];
static size_t below_length;
static long at, count;
static int torn, log_fd = -1;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (found == NULL) abort();
    return found;
}

__attribute__((constructor)) static void begin(void) {
    const char *folder = getenv("KILL_BELOW"), *number = getenv("KILL_AT"), *log = getenv("KILL_LOG");
    if (getcwd(cwd, sizeof cwd) == NULL) cwd[0] = 0;
    at = number ? atol(number) : 0;
    torn = getenv("KILL_TORN") != NULL;
    if (log) log_fd = REAL(open)(log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
    if (folder) {
        snprintf(below, sizeof below, "%s", folder);
        below_length = strlen(below);
    }
}

static int is_below(const char *path) {
    return below_length > 0 && strncmp(path, below, below_length) == 0
        && (path[below_length] == 0 || path[below_length] == '/');
}

/* The path of an open file or folder; empty if it has none. */
static void path_of(int fd, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    path[length > 0 ? length : 0] = 0;
}

static void absolute(int dirfd, const char *given, char *path) {
    char folder[PATH_MAX];
    if (given[0] == '/') {
        snprintf(path, PATH_MAX, "%s", given);
        return;
    }
    if (dirfd == AT_FDCWD) snprintf(folder, sizeof folder, "%s", cwd);
    else path_of(dirfd, folder);
    size_t length = strlen(folder);
    memcpy(path, folder, length);
    snprintf(path + length, PATH_MAX - length, "/%s", given);
}

static void die(void) {
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call, and says whether it is the one to die at. */
static int is_the_one(const char *name, const char *path) {
    if (!is_below(path)) return 0;
    pthread_mutex_lock(&mutex);
    long number = ++count;
    if (log_fd >= 0) {
        char line[PATH_MAX + 64];
        int length = snprintf(line, sizeof line, "%ld %s %s\n", number, name, path + below_length);
        if (length > 0 && REAL(write)(log_fd, line, (size_t)length) != length) abort();
    }
    int it = number == at;
    pthread_mutex_unlock(&mutex);
    return it;
}

static void call_at(const char *name, int dirfd, const char *given) {
    char path[PATH_MAX];
    int saved = errno;
    absolute(dirfd, given, path);
    if (is_the_one(name, path)) die();
    errno = saved;
}

static void call_on(const char *name, int fd) {
    char path[PATH_MAX];
    int saved = errno;
    path_of(fd, path);
    if (is_the_one(name, path)) die();
    errno = saved;
}

static void call_write(const char *name, int fd, const void *data, size_t length, off_t offset) {
    char path[PATH_MAX];
    int saved = errno;
    path_of(fd, path);
    if (is_the_one(name, path)) {
        ssize_t half = 0;
        if (torn && offset < 0) half = REAL(write)(fd, data, length / 2);
        if (torn && offset >= 0) half = REAL(pwrite)(fd, data, length / 2, offset);
        (void)half;
        die();
    }
    errno = saved;
}

static int changes(int flags) {
    return (flags & (O_CREAT | O_TRUNC)) != 0 || (flags & O_ACCMODE) != O_RDONLY;
}

#define OPEN(name)                                                      \
    int name(const char *path, int flags, ...) {                        \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        if (changes(flags)) call_at(#name, AT_FDCWD, path);             \
        return REAL(name)(path, flags, mode);                           \
    }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                                    \
    int name(int dirfd, const char *path, int flags, ...) {             \
        va_list rest;                                                   \
        va_start(rest, flags);                                          \
        mode_t mode = (flags & (O_CREAT | O_TMPFILE)) ? va_arg(rest, mode_t) : 0; \
        va_end(rest);                                                   \
        if (changes(flags)) call_at(#name, dirfd, path);                \
        return REAL(name)(dirfd, path, flags, mode);                    \
    }
OPENAT(openat)
OPENAT(openat64)

int creat(const char *path, mode_t mode) {
    call_at("creat", AT_FDCWD, path);
    return REAL(creat)(path, mode);
}

ssize_t write(int fd, const void *data, size_t length) {
    call_write("write", fd, data, length, -1);
    return REAL(write)(fd, data, length);
}

ssize_t pwrite(int fd, const void *data, size_t length, off_t offset) {
    call_write("pwrite", fd, data, length, offset);
    return REAL(pwrite)(fd, data, length, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t length, off64_t offset) {
    call_write("pwrite64", fd, data, length, offset);
    return REAL(pwrite64)(fd, data, length, offset);
}

ssize_t writev(int fd, const struct iovec *parts, int number) {
    if (number > 0) call_write("writev", fd, parts[0].iov_base, parts[0].iov_len, -1);
    return REAL(writev)(fd, parts, number);
}

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t length, unsigned flags) {
    call_on("copy_file_range", out);
    return REAL(copy_file_range)(in, from, out, to, length, flags);
}

int fsync(int fd) {
    call_on("fsync", fd);
    return REAL(fsync)(fd);
}

int fdatasync(int fd) {
    call_on("fdatasync", fd);
    return REAL(fdatasync)(fd);
}

int ftruncate(int fd, off_t length) {
    call_on("ftruncate", fd);
    return REAL(ftruncate)(fd, length);
}

int ftruncate64(int fd, off64_t length) {
    call_on("ftruncate64", fd);
    return REAL(ftruncate64)(fd, length);
}

int fchmod(int fd, mode_t mode) {
    call_on("fchmod", fd);
    return REAL(fchmod)(fd, mode);
}

int chmod(const char *path, mode_t mode) {
    call_at("chmod", AT_FDCWD, path);
    return REAL(chmod)(path, mode);
}

int rename(const char *from, const char *to) {
    call_at("rename", AT_FDCWD, to);
    return REAL(rename)(from, to);
}

int renameat(int from_fd, const char *from, int to_fd, const char *to) {
    call_at("renameat", to_fd, to);
    return REAL(renameat)(from_fd, from, to_fd, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    call_at("renameat2", to_fd, to);
    return REAL(renameat2)(from_fd, from, to_fd, to, flags);
}

int unlink(const char *path) {
    call_at("unlink", AT_FDCWD, path);
    return REAL(unlink)(path);
}

int unlinkat(int dirfd, const char *path, int flags) {
    call_at("unlinkat", dirfd, path);
    return REAL(unlinkat)(dirfd, path, flags);
}

int rmdir(const char *path) {
    call_at("rmdir", AT_FDCWD, path);
    return REAL(rmdir)(path);
}

int mkdir(const char *path, mode_t mode) {
    call_at("mkdir", AT_FDCWD, path);
    return REAL(mkdir)(path, mode);
}

int mkdirat(int dirfd, const char *path, mode_t mode) {
    call_at("mkdirat", dirfd, path);
    return REAL(mkdirat)(dirfd, path, mode);
}

int link(const char *from, const char *to) {
    call_at("link", AT_FDCWD, to);
    return REAL(link)(from, to);
}

int linkat(int from_fd, const char *from, int to_fd, const char *to, int flags) {
    call_at("linkat", to_fd, to);
    return REAL(linkat)(from_fd, from, to_fd, to, flags);
}

int symlink(const char *target, const char *path) {
    call_at("symlink", AT_FDCWD, path);
    return REAL(symlink)(target, path);
}

int symlinkat(const char *target, int dirfd, const char *path) {
    call_at("symlinkat", dirfd, path);
    return REAL(symlinkat)(target, dirfd, path);
}
