/* What a process says of itself to the kernel. */
#include "napi.h"

#include <errno.h>
#include <sys/prctl.h>

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

bool thinfs_process_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {{"process_set_io_flusher", process_set_io_flusher}};
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
