/* Memory that outlives a process, by a descriptor that others hold: memfd_create(2), mmap(2). */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* memory_create(name, size): a descriptor of `size` bytes of memory, zeros, which never shrink. */
static napi_value memory_create(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  char name[64];
  int64_t size;
  if (!thinfs_arguments(env, info, 2, arguments) ||
      !thinfs_string(env, arguments[0], name, sizeof name) ||
      !thinfs_integer(env, arguments[1], &size))
    return NULL;
  int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0) return thinfs_throw(env, errno, "memfd_create");
  /* A process that reads mapped memory that was cut off gets a SIGBUS. */
  if (ftruncate(fd, size) != 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK) != 0) {
    int error = errno;
    close(fd);
    return thinfs_throw(env, error, "ftruncate");
  }
  return thinfs_number(env, fd);
}

static void unmap(napi_env env, void *memory, void *hint) {
  size_t *length = hint;
  (void)env;
  munmap(memory, *length);
  free(length);
}

/* memory_map(fd, offset, length): an ArrayBuffer onto it, shared with whoever maps it as well. */
static napi_value memory_map(napi_env env, napi_callback_info info) {
  napi_value arguments[3], buffer;
  int fd;
  int64_t offset, length;
  if (!thinfs_arguments(env, info, 3, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_integer(env, arguments[1], &offset) || !thinfs_integer(env, arguments[2], &length))
    return NULL;
  size_t *hint = malloc(sizeof *hint);
  if (hint == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  *hint = (size_t)length;
  void *memory = mmap(NULL, *hint, PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
  if (memory == MAP_FAILED) {
    int error = errno;
    free(hint);
    return thinfs_throw(env, error, "mmap");
  }
  if (napi_create_external_arraybuffer(env, memory, *hint, unmap, hint, &buffer) != napi_ok) {
    unmap(env, memory, hint);
    return thinfs_throw(env, ENOMEM, "napi_create_external_arraybuffer");
  }
  return buffer;
}

bool thinfs_memory_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"memory_create", memory_create},
      {"memory_map", memory_map},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
