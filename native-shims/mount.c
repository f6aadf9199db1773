/* mount(2). */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <limits.h>
#include <sys/mount.h>

/* mount_attach(source, target, type, flags, data): mount(2). */
static napi_value mount_attach(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  char source[PATH_MAX], target[PATH_MAX], type[64], data[4096];
  int64_t flags;
  if (!thinfs_arguments(env, info, 5, arguments) ||
      !thinfs_string(env, arguments[0], source, sizeof source) ||
      !thinfs_string(env, arguments[1], target, sizeof target) ||
      !thinfs_string(env, arguments[2], type, sizeof type) ||
      !thinfs_integer(env, arguments[3], &flags) ||
      !thinfs_string(env, arguments[4], data, sizeof data))
    return NULL;
  if (mount(source, target, type, (unsigned long)flags, data) != 0)
    return thinfs_throw(env, errno, "mount");
  return NULL;
}

bool thinfs_mount_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {{"mount_attach", mount_attach}};
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
