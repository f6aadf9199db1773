/* thinfs.node: the system calls that Node lacks. No policy here: check, call, report. */
#include "napi.h"

NAPI_MODULE_INIT() {
  if (!thinfs_file_exports(env, exports) || !thinfs_fuse_exports(env, exports) ||
      !thinfs_fuse_native_exports(env, exports) ||
      !thinfs_memory_exports(env, exports) ||
      !thinfs_mount_exports(env, exports) || !thinfs_poll_exports(env, exports) ||
      !thinfs_process_exports(env, exports) || !thinfs_rbd_exports(env, exports) ||
      !thinfs_ring_exports(env, exports) ||
      !thinfs_socket_exports(env, exports))
    return NULL;
  return exports;
}
