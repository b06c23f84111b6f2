/*
 * Preloaded into a process: counts its calls that change or read files below some directories, over all
 * threads, and before one of them ends the process, or has the call fail, fall short or lie.
 *
 *	FAULTS_UNDER	directories, absolute, with colons between them
 *	FAULTS_CALLS	change or read: what is counted
 *	FAULTS_ONLY	kinds of calls, with commas around each; else all of these are counted
 *	FAULTS_AT	the call that is struck, from 1; 0: none
 *	FAULTS_ON	any: and all after it
 *	FAULTS_DO	kill, short, lie, or an errno's number
 *	FAULTS_FROM	a file's content from this byte on: read, readv and preadv fail there with EIO, as on a bad sector
 *	FAULTS_TWICE	a name that directories list twice
 *	FAULTS_XATTR	an attribute that cannot be read, or "list": the names of the attributes cannot be; EIO
 *	FAULTS_LOG	a file: a line is appended for each call: number, kind, path, and ! if it is struck
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

enum { CHANGE = 1, READ = 2 };
enum { GO_ON = 0, SHORT = -1, LIE = -2 };

static atomic_long counted;

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static void
where_is(int dirfd, const char *name, char *out, size_t room)
{
	char link[64];
	ssize_t got = 0;

	out[0] = 0;
	if (name != NULL && name[0] == '/') {
		snprintf(out, room, "%s", name);
		return;
	}
	if (dirfd == AT_FDCWD)
		snprintf(link, sizeof(link), "/proc/self/cwd");
	else
		snprintf(link, sizeof(link), "/proc/self/fd/%d", dirfd);
	got = syscall(SYS_readlink, link, out, room - 1);
	out[got > 0 ? got : 0] = 0;
	if (name != NULL && name[0] != 0 && got > 0)
		snprintf(out + got, room - (size_t)got, "/%s", name);
}

static int
is_under(const char *path)
{
	const char *list = getenv("FAULTS_UNDER");
	size_t len;

	for (; list != NULL && *list; list += len + (list[len] == ':')) {
		len = strcspn(list, ":");
		if (len && strncmp(path, list, len) == 0 && (path[len] == '/' || path[len] == 0))
			return (1);
	}
	return (0);
}

/* Says what is to become of a call: GO_ON, SHORT, LIE, or the errno that it fails with. */
static int
strike(int class, const char *kind, int dirfd, const char *name)
{
	const char *calls = getenv("FAULTS_CALLS"), *only = getenv("FAULTS_ONLY"), *at = getenv("FAULTS_AT");
	const char *log = getenv("FAULTS_LOG"), *act = getenv("FAULTS_DO");
	char path[PATH_MAX + 256], line[PATH_MAX + 512], comma[64];
	long n, when;
	int hit, saved = errno;

	if (calls == NULL || class != (calls[0] == 'c' ? CHANGE : READ))
		return (GO_ON);
	snprintf(comma, sizeof(comma), ",%s,", kind);
	if (only != NULL && *only && strstr(only, comma) == NULL)
		return (GO_ON);
	where_is(dirfd, name, path, sizeof(path));
	if (!is_under(path)) {
		errno = saved;
		return (GO_ON);
	}
	n = atomic_fetch_add(&counted, 1) + 1;
	when = at != NULL ? atol(at) : 0;
	hit = when != 0 && (n == when || (n > when && getenv("FAULTS_ON") != NULL));
	if (log != NULL) {
		int fd = (int)syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
		int len = snprintf(line, sizeof(line), "%ld %s %s%s\n", n, kind, path, hit ? " !" : "");

		(void)syscall(SYS_write, fd, line, (size_t)len);
		(void)syscall(SYS_close, fd);
	}
	errno = saved;
	if (!hit || act == NULL)
		return (GO_ON);
	if (strcmp(act, "kill") == 0) {
		syscall(SYS_kill, getpid(), SIGKILL);
		for (;;)
			pause();
	}
	if (strcmp(act, "short") == 0)
		return (SHORT);
	if (strcmp(act, "lie") == 0)
		return (LIE);
	return (atoi(act));
}

#define FAIL_IF(failure) do { int failure_ = (failure); if (failure_ > 0) { errno = failure_; return (-1); } if (failure_ == LIE) return (0); } while (0)

static int
opening(int dirfd, const char *name, int flags)
{
	int changes = (flags & (O_CREAT | O_TRUNC)) != 0;

	return (strike(changes ? CHANGE : READ, changes ? "create" : "open", dirfd, name));
}

#define MODE(flags) mode_t mode = 0; if ((flags) & (O_CREAT | O_TMPFILE)) { va_list ap; va_start(ap, flags); mode = va_arg(ap, mode_t); va_end(ap); }

int open(const char *name, int flags, ...) { MODE(flags) FAIL_IF(opening(AT_FDCWD, name, flags)); return (REAL(open)(name, flags, mode)); }
int open64(const char *name, int flags, ...) { MODE(flags) FAIL_IF(opening(AT_FDCWD, name, flags)); return (REAL(open64)(name, flags, mode)); }
int openat(int fd, const char *name, int flags, ...) { MODE(flags) FAIL_IF(opening(fd, name, flags)); return (REAL(openat)(fd, name, flags, mode)); }
int openat64(int fd, const char *name, int flags, ...) { MODE(flags) FAIL_IF(opening(fd, name, flags)); return (REAL(openat64)(fd, name, flags, mode)); }

static size_t
shorter(int failure, size_t len)
{
	return (failure == SHORT && len > 1 ? (len + 1) / 2 : len);
}

ssize_t write(int fd, const void *p, size_t len) { int failure = strike(CHANGE, "write", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(write)(fd, p, shorter(failure, len))); }
ssize_t pwrite(int fd, const void *p, size_t len, off_t at) { int failure = strike(CHANGE, "pwrite", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(pwrite)(fd, p, shorter(failure, len), at)); }
ssize_t pwrite64(int fd, const void *p, size_t len, off64_t at) { int failure = strike(CHANGE, "pwrite", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(pwrite64)(fd, p, shorter(failure, len), at)); }
ssize_t writev(int fd, const struct iovec *v, int n) { FAIL_IF(strike(CHANGE, "write", fd, NULL)); return (REAL(writev)(fd, v, n)); }
ssize_t pwritev(int fd, const struct iovec *v, int n, off_t at) { FAIL_IF(strike(CHANGE, "pwrite", fd, NULL)); return (REAL(pwritev)(fd, v, n, at)); }
ssize_t pwritev64v2(int fd, const struct iovec *v, int n, off64_t at, int flags) { FAIL_IF(strike(CHANGE, "pwrite", fd, NULL)); return (REAL(pwritev64v2)(fd, v, n, at, flags)); }
int fsync(int fd) { FAIL_IF(strike(CHANGE, "fsync", fd, NULL)); return (REAL(fsync)(fd)); }
int fdatasync(int fd) { FAIL_IF(strike(CHANGE, "fdatasync", fd, NULL)); return (REAL(fdatasync)(fd)); }
int syncfs(int fd) { FAIL_IF(strike(CHANGE, "syncfs", fd, NULL)); return (REAL(syncfs)(fd)); }
int link(const char *from, const char *to) { FAIL_IF(strike(CHANGE, "link", AT_FDCWD, to)); return (REAL(link)(from, to)); }
int linkat(int a, const char *from, int b, const char *to, int flags) { FAIL_IF(strike(CHANGE, "link", b, to)); return (REAL(linkat)(a, from, b, to, flags)); }
int rename(const char *from, const char *to) { FAIL_IF(strike(CHANGE, "rename", AT_FDCWD, to)); return (REAL(rename)(from, to)); }
int renameat(int a, const char *from, int b, const char *to) { FAIL_IF(strike(CHANGE, "rename", b, to)); return (REAL(renameat)(a, from, b, to)); }
int unlink(const char *name) { FAIL_IF(strike(CHANGE, "unlink", AT_FDCWD, name)); return (REAL(unlink)(name)); }
int unlinkat(int fd, const char *name, int flags) { FAIL_IF(strike(CHANGE, flags & AT_REMOVEDIR ? "rmdir" : "unlink", fd, name)); return (REAL(unlinkat)(fd, name, flags)); }
int rmdir(const char *name) { FAIL_IF(strike(CHANGE, "rmdir", AT_FDCWD, name)); return (REAL(rmdir)(name)); }
int mkdir(const char *name, mode_t mode) { FAIL_IF(strike(CHANGE, "mkdir", AT_FDCWD, name)); return (REAL(mkdir)(name, mode)); }
int mkdirat(int fd, const char *name, mode_t mode) { FAIL_IF(strike(CHANGE, "mkdir", fd, name)); return (REAL(mkdirat)(fd, name, mode)); }
int symlink(const char *from, const char *to) { FAIL_IF(strike(CHANGE, "symlink", AT_FDCWD, to)); return (REAL(symlink)(from, to)); }
int ftruncate(int fd, off_t len) { FAIL_IF(strike(CHANGE, "ftruncate", fd, NULL)); return (REAL(ftruncate)(fd, len)); }
int ftruncate64(int fd, off64_t len) { FAIL_IF(strike(CHANGE, "ftruncate", fd, NULL)); return (REAL(ftruncate64)(fd, len)); }
int posix_fallocate(int fd, off_t at, off_t len) { int failure = strike(CHANGE, "fallocate", fd, NULL); return (failure > 0 ? failure : REAL(posix_fallocate)(fd, at, len)); }
int posix_fallocate64(int fd, off64_t at, off64_t len) { int failure = strike(CHANGE, "fallocate", fd, NULL); return (failure > 0 ? failure : REAL(posix_fallocate64)(fd, at, len)); }
int msync(void *p, size_t len, int flags) { return (REAL(msync)(p, len, flags)); }

/* Returns how many of len bytes at `at` are readable before FAULTS_FROM; 0: none. */
static size_t
readable(int fd, off64_t at, size_t len)
{
	const char *from = getenv("FAULTS_FROM");
	char path[PATH_MAX + 256];
	int saved = errno;

	if (from == NULL)
		return (len);
	where_is(fd, NULL, path, sizeof(path));
	errno = saved;
	if (!is_under(path) || at + (off64_t)len <= atol(from))
		return (len);
	return (at < atol(from) ? (size_t)(atol(from) - at) : 0);
}

static ssize_t
read_vector(int fd, const struct iovec *v, int n, off64_t at)
{
	size_t len = n == 1 ? readable(fd, at, v->iov_len) : 1;

	if (len == 0) {
		errno = EIO;
		return (-1);
	}
	return (n == 1 ? REAL(pread64)(fd, v->iov_base, len, at) : REAL(preadv64)(fd, v, n, at));
}

ssize_t preadv(int fd, const struct iovec *v, int n, off_t at) { return (read_vector(fd, v, n, at)); }
ssize_t preadv64(int fd, const struct iovec *v, int n, off64_t at) { return (read_vector(fd, v, n, at)); }
ssize_t preadv64v2(int fd, const struct iovec *v, int n, off64_t at, int flags) { (void)flags; return (read_vector(fd, v, n, at)); }

ssize_t
readv(int fd, const struct iovec *v, int n)
{
	size_t len = n == 1 ? readable(fd, lseek(fd, 0, SEEK_CUR), v->iov_len) : 1;

	if (len == 0 && v->iov_len > 0) {
		errno = EIO;
		return (-1);
	}
	return (n == 1 ? REAL(read)(fd, v->iov_base, len) : REAL(readv)(fd, v, n));
}

ssize_t read(int fd, void *p, size_t len) { size_t some = readable(fd, lseek(fd, 0, SEEK_CUR), len); if (len && !some) { errno = EIO; return (-1); } len = some; int failure = strike(READ, "read", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(read)(fd, p, shorter(failure, len))); }
ssize_t pread(int fd, void *p, size_t len, off_t at) { int failure = strike(READ, "pread", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(pread)(fd, p, shorter(failure, len), at)); }
ssize_t pread64(int fd, void *p, size_t len, off64_t at) { int failure = strike(READ, "pread", fd, NULL); if (failure > 0) { errno = failure; return (-1); } return (REAL(pread64)(fd, p, shorter(failure, len), at)); }
int stat64(const char *name, struct stat64 *out) { FAIL_IF(strike(READ, "stat", AT_FDCWD, name)); return (REAL(stat64)(name, out)); }
int lstat64(const char *name, struct stat64 *out) { FAIL_IF(strike(READ, "stat", AT_FDCWD, name)); return (REAL(lstat64)(name, out)); }
int fstat64(int fd, struct stat64 *out) { FAIL_IF(strike(READ, "fstat", fd, NULL)); return (REAL(fstat64)(fd, out)); }
int fstatat64(int fd, const char *name, struct stat64 *out, int flags) { FAIL_IF(strike(READ, "stat", fd, name)); return (REAL(fstatat64)(fd, name, out, flags)); }

int fstatat(int fd, const char *name, struct stat *out, int flags) { FAIL_IF(strike(READ, "stat", fd, name)); return (REAL(fstatat)(fd, name, out, flags)); }
int fstat(int fd, struct stat *out) { FAIL_IF(strike(READ, "fstat", fd, NULL)); return (REAL(fstat)(fd, out)); }

/* Appends the entry of FAULTS_TWICE once more to a listing, if it has it and there is room. */
static long
repeated(int fd, char *listing, long room, long len)
{
	const char *name = getenv("FAULTS_TWICE");
	char path[PATH_MAX + 256];
	long at;
	int saved = errno;

	if (name == NULL || len <= 0)
		return (len);
	where_is(fd, NULL, path, sizeof(path));
	errno = saved;
	if (!is_under(path))
		return (len);
	for (at = 0; at < len; at += ((struct dirent64 *)(listing + at))->d_reclen) {
		struct dirent64 *entry = (void *)(listing + at);

		if (strcmp(entry->d_name, name) == 0 && room - len >= entry->d_reclen) {
			memcpy(listing + len, entry, entry->d_reclen);
			return (len + entry->d_reclen);
		}
	}
	return (len);
}

long
syscall(long number, ...)
{
	long a[6];
	va_list ap;
	int i;

	va_start(ap, number);
	for (i = 0; i < 6; i++)
		a[i] = va_arg(ap, long);
	va_end(ap);
	if (number == SYS_getdents64) {
		FAIL_IF(strike(READ, "getdents", (int)a[0], NULL));
		return (repeated((int)a[0], (char *)a[1], a[2], REAL(syscall)(number, a[0], a[1], a[2], 0, 0, 0)));
	}
	return (REAL(syscall)(number, a[0], a[1], a[2], a[3], a[4], a[5]));
}

/* Whether reading an attribute of a file, or listing them, fails; path may be /proc/self/fd/N or /proc/self/fd/N/NAME. */
static int
no_attribute(int fd, const char *path, const char *attribute)
{
	const char *wanted = getenv("FAULTS_XATTR");
	char where[PATH_MAX + 256];
	int end = 0, saved = errno;

	if (wanted == NULL || strcmp(wanted, attribute) != 0)
		return (0);
	if (path != NULL && sscanf(path, "/proc/self/fd/%d%n", &fd, &end) == 1 && end > 0)
		path = path[end] == '/' ? path + end + 1 : NULL;
	where_is(fd, path, where, sizeof(where));
	errno = saved;
	if (!is_under(where))
		return (0);
	errno = EIO;
	return (1);
}

#define LISTS(name, of, fd, path) ssize_t name(of, char *p, size_t len) { return (no_attribute(fd, path, "list") ? -1 : REAL(name)(file, p, len)); }
LISTS(listxattr, const char *file, AT_FDCWD, file)
LISTS(llistxattr, const char *file, AT_FDCWD, file)
LISTS(flistxattr, int file, file, NULL)
#define GETS(name, of, fd, path) ssize_t name(of, const char *key, void *p, size_t len) { return (no_attribute(fd, path, key) ? -1 : REAL(name)(file, key, p, len)); }
GETS(getxattr, const char *file, AT_FDCWD, file)
GETS(lgetxattr, const char *file, AT_FDCWD, file)
GETS(fgetxattr, int file, file, NULL)

DIR *
opendir(const char *name)
{
	int failure = strike(READ, "opendir", AT_FDCWD, name);

	if (failure > 0) {
		errno = failure;
		return (NULL);
	}
	return (REAL(opendir)(name));
}

struct dirent64 *
readdir64(DIR *dir)
{
	int failure = strike(READ, "readdir", dirfd(dir), NULL);

	if (failure > 0) {
		errno = failure;
		return (NULL);
	}
	return (REAL(readdir64)(dir));
}
