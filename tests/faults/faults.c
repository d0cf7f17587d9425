/* Faults for a command and all that it starts, by LD_PRELOAD: at the FAULT_AT-th rename to, or read or write of, a file
 * below FAULT_UNDER either the process group is killed, as by kill -9 from outside, or the call fails.
 *
 *     FAULT_KIND=kill-at-rename    killed just before it
 *     FAULT_KIND=fail-read         EIO, that once
 *     FAULT_KIND=fail-write        ENOSPC, then and from then on
 *
 * Each such call adds its path, a line, to FAULT_LOG; the lines that are there already count.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

/* The number of this event among all processes, from 1; 0 when it is none of ours. */
static long event(const char *kind, const char *path) {
  const char *wanted = getenv("FAULT_KIND"), *under = getenv("FAULT_UNDER"), *name = getenv("FAULT_LOG");
  if (!wanted || !under || !name || strcmp(kind, wanted) || strncmp(path, under, strlen(under))) return 0;
  int log = open(name, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
  if (log < 0) return 0;
  flock(log, LOCK_EX);
  long count = 1;
  char buffer[4096];
  ssize_t size;
  while ((size = syscall(SYS_read, log, buffer, sizeof buffer)) > 0)
    for (ssize_t i = 0; i < size; ++i) count += buffer[i] == '\n';
  dprintf(log, "%s\n", path);
  close(log);
  return count;
}

static long at(void) { return getenv("FAULT_AT") ? atol(getenv("FAULT_AT")) : 0; }

static void renaming(const char *target) {
  char folder[PATH_MAX] = "", full[2 * PATH_MAX];
  if (target[0] != '/' && getcwd(folder, sizeof folder)) strcat(folder, "/");
  snprintf(full, sizeof full, "%s%s", folder, target);
  long number = event("kill-at-rename", full);
  if (number && number == at()) kill(0, SIGKILL);
}

/* Whether this read or write is the one to fail. */
static int failing(const char *kind, int descriptor) {
  const char *wanted = getenv("FAULT_KIND");
  if (!wanted || strcmp(kind, wanted)) return 0;
  char link[64], full[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t size = readlink(link, full, sizeof full - 1);
  if (size < 0) return 0;
  full[size] = 0;
  long number = event(kind, full);
  return number && at() && (number == at() || (number > at() && !strcmp(kind, "fail-write")));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL(kind, code) if (failing(kind, descriptor)) { errno = code; return -1; }

int rename(const char *from, const char *to) { renaming(to); return REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) { renaming(to); return REAL(renameat)(a, from, b, to); }
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  renaming(to);
  return REAL(renameat2)(a, from, b, to, flags);
}
ssize_t read(int descriptor, void *to, size_t size) { FAIL("fail-read", EIO) return REAL(read)(descriptor, to, size); }
ssize_t pread(int descriptor, void *to, size_t size, off_t where) {
  FAIL("fail-read", EIO)
  return REAL(pread)(descriptor, to, size, where);
}
ssize_t pread64(int descriptor, void *to, size_t size, off64_t where) {
  FAIL("fail-read", EIO)
  return REAL(pread64)(descriptor, to, size, where);
}
ssize_t write(int descriptor, const void *from, size_t size) { FAIL("fail-write", ENOSPC) return REAL(write)(descriptor, from, size); }
ssize_t pwrite(int descriptor, const void *from, size_t size, off_t where) {
  FAIL("fail-write", ENOSPC)
  return REAL(pwrite)(descriptor, from, size, where);
}
ssize_t pwrite64(int descriptor, const void *from, size_t size, off64_t where) {
  FAIL("fail-write", ENOSPC)
  return REAL(pwrite64)(descriptor, from, size, where);
}
ssize_t writev(int descriptor, const struct iovec *from, int count) {
  FAIL("fail-write", ENOSPC)
  return REAL(writev)(descriptor, from, count);
}
ssize_t pwritev(int descriptor, const struct iovec *from, int count, off_t where) {
  FAIL("fail-write", ENOSPC)
  return REAL(pwritev)(descriptor, from, count, where);
}
