/* Calls by which a process tells the kernel of itself, and takes from another. */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef SYS_pidfd_getfd
#define SYS_pidfd_open 434
#define SYS_pidfd_getfd 438
#endif

#ifndef PR_SET_IO_FLUSHER
#define PR_SET_IO_FLUSHER 57
#endif

/*
 * process_set_io_flusher(): memory that this thread and those it starts allocate is not made free
 * by writing to file systems, which could be waiting for this very process. Needs CAP_SYS_RESOURCE.
 */
static napi_value process_set_io_flusher(napi_env env, napi_callback_info info) {
  (void)info;
  if (prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) != 0) return thinfs_throw(env, errno, "prctl");
  return NULL;
}

/* process_descriptor(pid, fd): a duplicate of a descriptor of another process, closed on exec. */
static napi_value process_descriptor(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  int pid, theirs;
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_int(env, arguments[0], &pid) ||
      !thinfs_int(env, arguments[1], &theirs))
    return NULL;
  int process = (int)syscall(SYS_pidfd_open, pid, 0);
  if (process < 0) return thinfs_throw(env, errno, "pidfd_open");
  int ours = (int)syscall(SYS_pidfd_getfd, process, theirs, 0);
  int error = errno;
  close(process);
  return ours < 0 ? thinfs_throw(env, error, "pidfd_getfd") : thinfs_number(env, ours);
}

bool thinfs_process_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"process_set_io_flusher", process_set_io_flusher},
      {"process_descriptor", process_descriptor},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
