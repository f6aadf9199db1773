/* The descriptor of /dev/fuse: batches of requests, replies. */
#include "napi.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sys/ioctl.h>
#include <unistd.h>

/*
 * fuse_read(fd, buffer, slotSize, slots, lengths, enough, spin): reads waiting requests, one to
 * each slot of `buffer`, until there are no more (EAGAIN), no slot is left, or `enough` bytes came.
 * Looks for the first one for `spin` microseconds. Sizes go to `lengths`, a Uint32Array. Returns
 * how many; -1 when the file system is unmounted.
 */
static napi_value fuse_read(napi_env env, napi_callback_info info) {
  napi_value arguments[7];
  int fd;
  int64_t slot_size, slots, enough, spin;
  void *data, *lengths_data;
  size_t size, lengths_size;
  if (!thinfs_arguments(env, info, 7, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_integer(env, arguments[2], &slot_size) ||
      !thinfs_integer(env, arguments[3], &slots) ||
      !thinfs_integer(env, arguments[5], &enough) || !thinfs_integer(env, arguments[6], &spin))
    return NULL;
  if (napi_get_buffer_info(env, arguments[1], &data, &size) != napi_ok ||
      napi_get_buffer_info(env, arguments[4], &lengths_data, &lengths_size) != napi_ok) {
    napi_throw_type_error(env, NULL, "a buffer is expected");
    return NULL;
  }
  if (slot_size <= 0 || slots < 0 || slots > (int64_t)(size / (size_t)slot_size) ||
      slots > (int64_t)(lengths_size / sizeof(uint32_t))) {
    napi_throw_range_error(env, NULL, "the slots are not within the buffers");
    return NULL;
  }
  uint32_t *lengths = lengths_data;
  int64_t count = 0, total = 0, deadline = 0;
  while (count < slots && total < enough) {
    ssize_t got = read(fd, (char *)data + count * slot_size, (size_t)slot_size);
    if (got >= 0) {
      lengths[count++] = (uint32_t)got;
      total += got;
      continue;
    }
    /* ENOENT: the request was aborted while it was being read. */
    if (errno == EINTR || errno == ENOENT) continue;
    if (errno == EAGAIN) {
      if (count > 0 || spin == 0) break;
      int64_t now = thinfs_now_ns();
      if (deadline == 0) deadline = now + spin * 1000;
      if (now >= deadline) break;
      continue;
    }
    if (errno == ENODEV) return thinfs_number(env, count > 0 ? (double)count : -1);
    return thinfs_throw(env, errno, "read");
  }
  return thinfs_number(env, (double)count);
}

/* fuse_write(fd, buffer, at, length): one reply or notification; 0 or the negative errno. */
static napi_value fuse_write(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int fd;
  char *bytes;
  size_t size;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_bytes(env, arguments[1], arguments[2], arguments[3], &bytes, &size))
    return NULL;
  while (write(fd, bytes, size) < 0) {
    if (errno != EINTR) return thinfs_number(env, -errno);
  }
  return thinfs_number(env, 0);
}

/*
 * fuse_clone(fd): another descriptor of the connection, which no child inherits. What is read by it
 * is answered by it, and fails with ECONNABORTED when it is closed before. Source: linux/fuse.h.
 */
static napi_value fuse_clone(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  int fd;
  if (!thinfs_arguments(env, info, 1, arguments) || !thinfs_int(env, arguments[0], &fd)) return NULL;
  int clone = open("/dev/fuse", O_RDWR | O_CLOEXEC | O_NONBLOCK);
  if (clone < 0) return thinfs_throw(env, errno, "open /dev/fuse");
  uint32_t of = (uint32_t)fd;
  if (ioctl(clone, FUSE_DEV_IOC_CLONE, &of) < 0) {
    int error = errno;
    close(clone);
    return thinfs_throw(env, error, "FUSE_DEV_IOC_CLONE");
  }
  return thinfs_number(env, clone);
}

bool thinfs_fuse_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"fuse_read", fuse_read},
      {"fuse_write", fuse_write},
      {"fuse_clone", fuse_clone},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
