/* Files and block devices: whole reads and writes, fallocate(2), holes, locks, ioctl(2). */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/xattr.h>
#include <unistd.h>

#ifndef RWF_NOWAIT
/*
 * musl before 1.2.5 lacks both. The kernel takes the offset in two halves, of which one is enough.
 */
#define RWF_NOWAIT 8
#define preadv2(fd, vectors, count, offset, flags) \
  syscall(SYS_preadv2, (long)(fd), vectors, (long)(count), (long)(offset), 0L, (long)(flags))
#endif

/*
 * file_read(fd, buffer, at, length, offset): all bytes, or an error; `EOF` when the file ends
 * before.
 */
static napi_value file_read(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  int fd;
  char *bytes;
  size_t size;
  int64_t offset;
  if (!thinfs_arguments(env, info, 5, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_bytes(env, arguments[1], arguments[2], arguments[3], &bytes, &size) ||
      !thinfs_integer(env, arguments[4], &offset))
    return NULL;
  while (size > 0) {
    ssize_t got = pread(fd, bytes, size, offset);
    if (got == 0) {
      napi_throw_error(env, "EOF", "EOF: end of file, pread");
      return NULL;
    }
    if (got < 0) {
      if (errno == EINTR) continue;
      return thinfs_throw(env, errno, "pread");
    }
    bytes += got;
    size -= (size_t)got;
    offset += got;
  }
  return NULL;
}

/*
 * file_read_now(fd, buffer, at, length, offset): the same of what is in memory; false when that is
 * not all of it, or the file ends before.
 */
static napi_value file_read_now(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  int fd;
  struct iovec vector;
  char *bytes;
  int64_t offset;
  if (!thinfs_arguments(env, info, 5, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_bytes(env, arguments[1], arguments[2], arguments[3], &bytes, &vector.iov_len) ||
      !thinfs_integer(env, arguments[4], &offset))
    return NULL;
  vector.iov_base = bytes;
  ssize_t got;
  do {
    got = preadv2(fd, &vector, 1, offset, RWF_NOWAIT);
  } while (got < 0 && errno == EINTR);
  /* As glibc has it of a kernel without the call. */
  if (got < 0 && errno == ENOSYS) errno = EOPNOTSUPP;
  if (got < 0 && errno != EAGAIN) return thinfs_throw(env, errno, "preadv2");
  return thinfs_boolean(env, got == (ssize_t)vector.iov_len);
}

/* file_write(fd, buffer, at, length, offset): all bytes, or an error. */
static napi_value file_write(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  int fd;
  char *bytes;
  size_t size;
  int64_t offset;
  if (!thinfs_arguments(env, info, 5, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_bytes(env, arguments[1], arguments[2], arguments[3], &bytes, &size) ||
      !thinfs_integer(env, arguments[4], &offset))
    return NULL;
  while (size > 0) {
    ssize_t put = pwrite(fd, bytes, size, offset);
    if (put < 0) {
      if (errno == EINTR) continue;
      return thinfs_throw(env, errno, "pwrite");
    }
    /* POSIX leaves open what 0 means here; to go on would be a loop without end. */
    if (put == 0) return thinfs_throw(env, EIO, "pwrite");
    bytes += put;
    size -= (size_t)put;
    offset += put;
  }
  return NULL;
}

/* file_copy(fd, source, target, length): copy_file_range(2) within a file, all bytes. */
static napi_value file_copy(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int fd;
  int64_t source, target, length;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_integer(env, arguments[1], &source) || !thinfs_integer(env, arguments[2], &target) ||
      !thinfs_integer(env, arguments[3], &length))
    return NULL;
  off_t from = source, to = target;
  while (length > 0) {
    ssize_t copied = copy_file_range(fd, &from, fd, &to, (size_t)length, 0);
    if (copied == 0) {
      napi_throw_error(env, "EOF", "EOF: end of file, copy_file_range");
      return NULL;
    }
    if (copied < 0) {
      if (errno == EINTR) continue;
      return thinfs_throw(env, errno, "copy_file_range");
    }
    length -= copied;
  }
  return NULL;
}

enum { COPY_PART = 256 << 10, COPY_FOLIO = 64 << 10 };

typedef struct {
  napi_deferred deferred;
  napi_async_work work;
  int fd, error;
  bool keep_holes;
  int64_t source, target, length;
} copying;

/* Reads all of `length` bytes, or returns an errno. */
static int read_whole(int fd, char *to, size_t length, off_t offset) {
  while (length > 0) {
    ssize_t got = pread(fd, to, length, offset);
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) return got < 0 ? errno : EIO;
    to += got;
    length -= (size_t)got;
    offset += got;
  }
  return 0;
}

/* Writes all of `length` bytes, a folio at a time, or returns an errno. */
static int write_whole(int fd, const char *from, size_t length, off_t offset) {
  while (length > 0) {
    ssize_t put = pwrite(fd, from, length < COPY_FOLIO ? length : COPY_FOLIO, offset);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) return put < 0 ? errno : EIO;
    from += put;
    length -= (size_t)put;
    offset += put;
  }
  return 0;
}

/* Bytes from `offset` to the next one that is in no hole; `most` when there is none before. */
static int64_t hole_at(int fd, int64_t offset, int64_t most) {
  off_t data = lseek(fd, offset, SEEK_DATA);
  if (data < 0) return errno == ENXIO ? most : 0;
  return data - offset < most ? data - offset : most;
}

static int copy_range(const copying *call) {
  char *part = malloc(COPY_PART);
  if (part == NULL) return ENOMEM;
  int error = 0;
  for (int64_t done = 0; done < call->length && error == 0;) {
    int64_t left = call->length - done;
    int64_t hole = call->keep_holes ? hole_at(call->fd, call->source + done, left) : 0;
    if (hole > 0) {
      done += hole;
      continue;
    }
    size_t length = left < COPY_PART ? (size_t)left : COPY_PART;
    error = read_whole(call->fd, part, length, call->source + done);
    if (error == 0) error = write_whole(call->fd, part, length, call->target + done);
    done += (int64_t)length;
  }
  free(part);
  return error;
}

/*
 * Waits until what was copied is on the disk, so that nobody's flush has it to write. By another
 * description of the file: this one's has to report a failed write to the next fsync(2).
 */
static void write_out(int fd, off_t offset, off_t length) {
  char path[32];
  snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
  int other = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (other < 0) return;
  (void)sync_file_range(other, offset, length,
                        SYNC_FILE_RANGE_WAIT_BEFORE | SYNC_FILE_RANGE_WRITE |
                            SYNC_FILE_RANGE_WAIT_AFTER);
  close(other);
}

static void copying_execute(napi_env env, void *data) {
  copying *call = data;
  (void)env;
  call->error = copy_range(call);
  if (call->error == 0) write_out(call->fd, call->target, call->length);
}

static void copying_complete(napi_env env, napi_status status, void *data) {
  copying *call = data;
  thinfs_ended(env, status, call->deferred, call->error, "copy");
  napi_delete_async_work(env, call->work);
  free(call);
}

/*
 * file_copy_async(fd, source, target, length, keep_holes): copies bytes within a file on the thread
 * pool, and waits until they are on the disk; a promise. With `keep_holes` what is a hole of the
 * source is not written.
 */
static napi_value file_copy_async(napi_env env, napi_callback_info info) {
  napi_value arguments[5], promise, name;
  copying *call = calloc(1, sizeof *call);
  if (call == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  if (!thinfs_arguments(env, info, 5, arguments) || !thinfs_int(env, arguments[0], &call->fd) ||
      !thinfs_integer(env, arguments[1], &call->source) ||
      !thinfs_integer(env, arguments[2], &call->target) ||
      !thinfs_integer(env, arguments[3], &call->length)) {
    free(call);
    return NULL;
  }
  if (napi_get_value_bool(env, arguments[4], &call->keep_holes) != napi_ok) {
    free(call);
    napi_throw_type_error(env, NULL, "a boolean is expected");
    return NULL;
  }
  if (napi_create_promise(env, &call->deferred, &promise) != napi_ok ||
      napi_create_string_utf8(env, "thinfs:copy", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_async_work(env, NULL, name, copying_execute, copying_complete, call,
                             &call->work) != napi_ok ||
      napi_queue_async_work(env, call->work) != napi_ok) {
    if (call->work != NULL) napi_delete_async_work(env, call->work);
    free(call);
    return thinfs_throw(env, ENOMEM, "napi_queue_async_work");
  }
  return promise;
}

static int allocate(int fd, int mode, int64_t offset, int64_t length) {
  for (;;) {
    if (fallocate(fd, mode, offset, length) == 0) return 0;
    if (errno != EINTR) return errno;
  }
}

/* file_allocate(fd, mode, offset, length): fallocate(2). */
static napi_value file_allocate(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int fd, mode;
  int64_t offset, length;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_int(env, arguments[1], &mode) || !thinfs_integer(env, arguments[2], &offset) ||
      !thinfs_integer(env, arguments[3], &length))
    return NULL;
  int error = allocate(fd, mode, offset, length);
  return error == 0 ? NULL : thinfs_throw(env, error, "fallocate");
}

typedef struct {
  napi_deferred deferred;
  int error;
  int64_t offset, length;
} allocation;

typedef struct {
  napi_async_work work;
  int fd, mode;
  uint32_t count;
  allocation calls[];
} allocations;

static void allocations_execute(napi_env env, void *data) {
  allocations *batch = data;
  (void)env;
  for (uint32_t i = 0; i < batch->count; i++) {
    allocation *call = &batch->calls[i];
    call->error = allocate(batch->fd, batch->mode, call->offset, call->length);
  }
}

static void allocations_complete(napi_env env, napi_status status, void *data) {
  allocations *batch = data;
  for (uint32_t i = 0; i < batch->count; i++) {
    allocation *call = &batch->calls[i];
    thinfs_ended(env, status, call->deferred, call->error, "fallocate");
  }
  napi_delete_async_work(env, batch->work);
  free(batch);
}

/*
 * file_allocate_async(fd, mode, ranges): fallocate(2) on the thread pool, once for each offset and
 * length in `ranges`, a Float64Array, one after the other; an array of a promise for each.
 */
static napi_value file_allocate_async(napi_env env, napi_callback_info info) {
  napi_value arguments[3], promises, promise, name;
  int fd, mode;
  napi_typedarray_type type;
  size_t length;
  void *data;
  if (!thinfs_arguments(env, info, 3, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_int(env, arguments[1], &mode))
    return NULL;
  if (napi_get_typedarray_info(env, arguments[2], &type, &length, &data, NULL, NULL) != napi_ok ||
      type != napi_float64_array || length % 2 != 0 || length > UINT32_MAX) {
    napi_throw_type_error(env, NULL, "a Float64Array of offsets and lengths is expected");
    return NULL;
  }
  const double *ranges = data;
  allocations *batch = calloc(1, sizeof *batch + length / 2 * sizeof *batch->calls);
  if (batch == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  batch->fd = fd;
  batch->mode = mode;
  batch->count = (uint32_t)(length / 2);
  for (uint32_t i = 0; i < batch->count; i++) {
    if (!thinfs_whole(env, ranges[2 * i], &batch->calls[i].offset) ||
        !thinfs_whole(env, ranges[2 * i + 1], &batch->calls[i].length)) {
      free(batch);
      return NULL;
    }
  }
  bool made = napi_create_array_with_length(env, batch->count, &promises) == napi_ok;
  for (uint32_t i = 0; made && i < batch->count; i++)
    made = napi_create_promise(env, &batch->calls[i].deferred, &promise) == napi_ok &&
           napi_set_element(env, promises, i, promise) == napi_ok;
  if (!made ||
      napi_create_string_utf8(env, "thinfs:fallocate", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_async_work(env, NULL, name, allocations_execute, allocations_complete, batch,
                             &batch->work) != napi_ok ||
      napi_queue_async_work(env, batch->work) != napi_ok) {
    if (batch->work != NULL) napi_delete_async_work(env, batch->work);
    free(batch);
    return thinfs_throw(env, ENOMEM, "napi_queue_async_work");
  }
  return promises;
}

/* file_seek(fd, offset, whence): the new position; -1 when nothing of that kind follows (ENXIO). */
static napi_value file_seek(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  int fd, whence;
  int64_t offset;
  if (!thinfs_arguments(env, info, 3, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_integer(env, arguments[1], &offset) || !thinfs_int(env, arguments[2], &whence))
    return NULL;
  off_t found = lseek(fd, offset, whence);
  if (found < 0 && errno != ENXIO) return thinfs_throw(env, errno, "lseek");
  return thinfs_number(env, (double)found);
}

/* An open-file-description lock; false when it is taken. A length of 0 goes on to the end. */
static napi_value lock_range(napi_env env, napi_value fd_value, napi_value exclusive_value,
                             int64_t offset, int64_t length) {
  int fd;
  bool exclusive;
  struct flock lock = {.l_whence = SEEK_SET, .l_start = offset, .l_len = length};
  if (!thinfs_int(env, fd_value, &fd)) return NULL;
  if (napi_get_value_bool(env, exclusive_value, &exclusive) != napi_ok) {
    napi_throw_type_error(env, NULL, "a boolean is expected");
    return NULL;
  }
  lock.l_type = exclusive ? F_WRLCK : F_RDLCK;
  if (fcntl(fd, F_OFD_SETLK, &lock) == 0) return thinfs_boolean(env, true);
  if (errno == EAGAIN || errno == EACCES) return thinfs_boolean(env, false);
  return thinfs_throw(env, errno, "fcntl");
}

/* file_lock(fd, exclusive): a lock on the whole file. */
static napi_value file_lock(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  if (!thinfs_arguments(env, info, 2, arguments)) return NULL;
  return lock_range(env, arguments[0], arguments[1], 0, 0);
}

/* file_lock_range(fd, exclusive, offset, length): a lock on a part of it. */
static napi_value file_lock_range(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int64_t offset, length;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_integer(env, arguments[2], &offset) ||
      !thinfs_integer(env, arguments[3], &length))
    return NULL;
  return lock_range(env, arguments[0], arguments[1], offset, length);
}

typedef struct {
  napi_async_work work;
  napi_deferred deferred;
  napi_ref buffer;
  char *bytes;
  int64_t command, number;
  int fd, result, error;
} control;

static void control_execute(napi_env env, void *data) {
  control *request = data;
  (void)env;
  void *argument = request->bytes != NULL ? request->bytes : (void *)(intptr_t)request->number;
  request->result = ioctl(request->fd, (unsigned long)request->command, argument);
  request->error = request->result < 0 ? errno : 0;
}

static void control_complete(napi_env env, napi_status status, void *data) {
  control *request = data;
  if (status == napi_cancelled) request->error = ECANCELED;
  if (request->error == 0) {
    napi_resolve_deferred(env, request->deferred, thinfs_number(env, request->result));
  } else {
    napi_reject_deferred(env, request->deferred, thinfs_error(env, request->error, "ioctl"));
  }
  if (request->buffer != NULL) napi_delete_reference(env, request->buffer);
  napi_delete_async_work(env, request->work);
  free(request);
}

/*
 * file_ioctl_async(fd, command, argument): ioctl(2) on the thread pool; a promise of what it
 * returns. The argument is a Buffer that is large enough for the command, or a number.
 */
static napi_value file_ioctl_async(napi_env env, napi_callback_info info) {
  napi_value arguments[3], promise, name;
  napi_valuetype type;
  void *whole;
  control *request = calloc(1, sizeof *request);
  if (request == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  if (!thinfs_arguments(env, info, 3, arguments) ||
      !thinfs_int(env, arguments[0], &request->fd) ||
      !thinfs_integer(env, arguments[1], &request->command) ||
      napi_typeof(env, arguments[2], &type) != napi_ok) {
    free(request);
    return NULL;
  }
  if (type == napi_number) {
    if (!thinfs_integer(env, arguments[2], &request->number)) {
      free(request);
      return NULL;
    }
  } else if (napi_get_buffer_info(env, arguments[2], &whole, NULL) != napi_ok ||
             napi_create_reference(env, arguments[2], 1, &request->buffer) != napi_ok) {
    free(request);
    napi_throw_type_error(env, NULL, "a Buffer or a number is expected");
    return NULL;
  } else {
    request->bytes = whole;
  }
  if (napi_create_string_utf8(env, "thinfs:ioctl", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_promise(env, &request->deferred, &promise) != napi_ok ||
      napi_create_async_work(env, NULL, name, control_execute, control_complete, request,
                             &request->work) != napi_ok ||
      napi_queue_async_work(env, request->work) != napi_ok) {
    if (request->buffer != NULL) napi_delete_reference(env, request->buffer);
    free(request);
    return thinfs_throw(env, ENOMEM, "napi_queue_async_work");
  }
  return promise;
}

/*
 * file_get_attribute(fd, name): fgetxattr(2) as text, of at most 255 bytes; null when there is
 * none.
 */
static napi_value file_get_attribute(napi_env env, napi_callback_info info) {
  napi_value arguments[2], value;
  int fd;
  char name[256], content[256];
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_string(env, arguments[1], name, sizeof name))
    return NULL;
  ssize_t size = fgetxattr(fd, name, content, sizeof content - 1);
  if (size < 0 && errno != ENODATA) return thinfs_throw(env, errno, "fgetxattr");
  napi_status status = size < 0
                           ? napi_get_null(env, &value)
                           : napi_create_string_latin1(env, content, (size_t)size, &value);
  return status == napi_ok ? value : NULL;
}

/* file_set_attribute(fd, name, text): fsetxattr(2). */
static napi_value file_set_attribute(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  int fd;
  char name[256], content[256];
  if (!thinfs_arguments(env, info, 3, arguments) || !thinfs_int(env, arguments[0], &fd) ||
      !thinfs_string(env, arguments[1], name, sizeof name) ||
      !thinfs_string(env, arguments[2], content, sizeof content))
    return NULL;
  return fsetxattr(fd, name, content, strlen(content), 0) == 0 ? NULL
                                                              : thinfs_throw(env, errno, "fsetxattr");
}

bool thinfs_file_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"file_read", file_read},
      {"file_read_now", file_read_now},
      {"file_write", file_write},
      {"file_copy", file_copy},
      {"file_copy_async", file_copy_async},
      {"file_allocate", file_allocate},
      {"file_allocate_async", file_allocate_async},
      {"file_seek", file_seek},
      {"file_lock", file_lock},
      {"file_lock_range", file_lock_range},
      {"file_ioctl_async", file_ioctl_async},
      {"file_get_attribute", file_get_attribute},
      {"file_set_attribute", file_set_attribute},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
