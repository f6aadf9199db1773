#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

/* Number.MAX_SAFE_INTEGER. */
#define MAX_SAFE_INTEGER 9007199254740991.0

bool thinfs_arguments(napi_env env, napi_callback_info info, size_t wanted, napi_value *arguments) {
  size_t count = wanted;
  if (napi_get_cb_info(env, info, &count, arguments, NULL, NULL) == napi_ok && count == wanted)
    return true;
  napi_throw_type_error(env, NULL, "wrong number of arguments");
  return false;
}

bool thinfs_integer(napi_env env, napi_value value, int64_t *integer) {
  double number;
  /* napi_get_value_int64 makes 0 of NaN, and cuts fractions off: a write would go to byte 0. */
  if (napi_get_value_double(env, value, &number) != napi_ok) {
    napi_throw_type_error(env, NULL, "an integer is expected");
    return false;
  }
  return thinfs_whole(env, number, integer);
}

bool thinfs_whole(napi_env env, double number, int64_t *integer) {
  if (number < -MAX_SAFE_INTEGER || number > MAX_SAFE_INTEGER) {
    /* Infinity less itself is no number. */
    if (number - number != 0)
      napi_throw_type_error(env, NULL, "an integer is expected");
    else
      napi_throw_range_error(env, NULL, "an integer between -2^53 and 2^53 is expected");
    return false;
  }
  /* floor() would be a call, in every request. C leaves open what a NaN is converted to. */
  if (number != number || (double)(int64_t)number != number) {
    napi_throw_type_error(env, NULL, "an integer is expected");
    return false;
  }
  *integer = (int64_t)number;
  return true;
}

bool thinfs_int(napi_env env, napi_value value, int *integer) {
  int64_t wide;
  if (!thinfs_integer(env, value, &wide)) return false;
  if (wide < INT_MIN || wide > INT_MAX) {
    napi_throw_range_error(env, NULL, "an integer of 32 bits is expected");
    return false;
  }
  *integer = (int)wide;
  return true;
}

bool thinfs_bytes(napi_env env, napi_value buffer, napi_value at, napi_value length, char **bytes,
                  size_t *size) {
  int64_t first, count;
  void *data;
  size_t total;
  if (!thinfs_integer(env, at, &first) || !thinfs_integer(env, length, &count)) return false;
  if (napi_get_buffer_info(env, buffer, &data, &total) != napi_ok) {
    napi_throw_type_error(env, NULL, "a buffer is expected");
    return false;
  }
  if (first < 0 || count < 0 || (uint64_t)first > total || (uint64_t)count > total - (size_t)first) {
    napi_throw_range_error(env, NULL, "the range is not within the buffer");
    return false;
  }
  *bytes = (char *)data + first;
  *size = (size_t)count;
  return true;
}

bool thinfs_string(napi_env env, napi_value value, char *string, size_t size) {
  size_t length;
  if (napi_get_value_string_utf8(env, value, NULL, 0, &length) != napi_ok) {
    napi_throw_type_error(env, NULL, "a string is expected");
    return false;
  }
  if (length >= size) {
    thinfs_throw(env, ENAMETOOLONG, "string");
    return false;
  }
  napi_get_value_string_utf8(env, value, string, size, &length);
  if (strlen(string) != length) {
    napi_throw_type_error(env, NULL, "a string without NUL is expected");
    return false;
  }
  return true;
}

napi_value thinfs_number(napi_env env, double number) {
  napi_value value = NULL;
  napi_create_double(env, number, &value);
  return value;
}

napi_value thinfs_boolean(napi_env env, bool boolean) {
  napi_value value = NULL;
  napi_get_boolean(env, boolean, &value);
  return value;
}

napi_value thinfs_undefined(napi_env env) {
  napi_value value = NULL;
  napi_get_undefined(env, &value);
  return value;
}

/*
 * The name of an errno, NULL for none. libuv has not all, musl no such function, glibc since 2.32.
 */
static const char *name_of(int error) {
#define NAME(name) \
  case name: \
    return #name;
  switch (error) {
    NAME(EPERM) NAME(ENOENT) NAME(ESRCH) NAME(EINTR) NAME(EIO) NAME(ENXIO) NAME(E2BIG)
    NAME(ENOEXEC) NAME(EBADF) NAME(ECHILD) NAME(EAGAIN) NAME(ENOMEM) NAME(EACCES) NAME(EFAULT)
    NAME(ENOTBLK) NAME(EBUSY) NAME(EEXIST) NAME(EXDEV) NAME(ENODEV) NAME(ENOTDIR) NAME(EISDIR)
    NAME(EINVAL) NAME(ENFILE) NAME(EMFILE) NAME(ENOTTY) NAME(ETXTBSY) NAME(EFBIG) NAME(ENOSPC)
    NAME(ESPIPE) NAME(EROFS) NAME(EMLINK) NAME(EPIPE) NAME(EDOM) NAME(ERANGE) NAME(EDEADLK)
    NAME(ENAMETOOLONG) NAME(ENOLCK) NAME(ENOSYS) NAME(ENOTEMPTY) NAME(ELOOP) NAME(ENOMSG)
    NAME(EIDRM) NAME(ECHRNG) NAME(EL2NSYNC) NAME(EL3HLT) NAME(EL3RST) NAME(ELNRNG) NAME(EUNATCH)
    NAME(ENOCSI) NAME(EL2HLT) NAME(EBADE) NAME(EBADR) NAME(EXFULL) NAME(ENOANO) NAME(EBADRQC)
    NAME(EBADSLT) NAME(EBFONT) NAME(ENOSTR) NAME(ENODATA) NAME(ETIME) NAME(ENOSR) NAME(ENONET)
    NAME(ENOPKG) NAME(EREMOTE) NAME(ENOLINK) NAME(EADV) NAME(ESRMNT) NAME(ECOMM) NAME(EPROTO)
    NAME(EMULTIHOP) NAME(EDOTDOT) NAME(EBADMSG) NAME(EOVERFLOW) NAME(ENOTUNIQ) NAME(EBADFD)
    NAME(EREMCHG) NAME(ELIBACC) NAME(ELIBBAD) NAME(ELIBSCN) NAME(ELIBMAX) NAME(ELIBEXEC)
    NAME(EILSEQ) NAME(ERESTART) NAME(ESTRPIPE) NAME(EUSERS) NAME(ENOTSOCK) NAME(EDESTADDRREQ)
    NAME(EMSGSIZE) NAME(EPROTOTYPE) NAME(ENOPROTOOPT) NAME(EPROTONOSUPPORT)
    NAME(ESOCKTNOSUPPORT) NAME(EOPNOTSUPP) NAME(EPFNOSUPPORT) NAME(EAFNOSUPPORT)
    NAME(EADDRINUSE) NAME(EADDRNOTAVAIL) NAME(ENETDOWN) NAME(ENETUNREACH) NAME(ENETRESET)
    NAME(ECONNABORTED) NAME(ECONNRESET) NAME(ENOBUFS) NAME(EISCONN) NAME(ENOTCONN)
    NAME(ESHUTDOWN) NAME(ETOOMANYREFS) NAME(ETIMEDOUT) NAME(ECONNREFUSED) NAME(EHOSTDOWN)
    NAME(EHOSTUNREACH) NAME(EALREADY) NAME(EINPROGRESS) NAME(ESTALE) NAME(EUCLEAN) NAME(ENOTNAM)
    NAME(ENAVAIL) NAME(EISNAM) NAME(EREMOTEIO) NAME(EDQUOT) NAME(ENOMEDIUM) NAME(EMEDIUMTYPE)
    NAME(ECANCELED) NAME(ENOKEY) NAME(EKEYEXPIRED) NAME(EKEYREVOKED) NAME(EKEYREJECTED)
    NAME(EOWNERDEAD) NAME(ENOTRECOVERABLE) NAME(ERFKILL) NAME(EHWPOISON)
  }
#undef NAME
  return NULL;
}

napi_value thinfs_error(napi_env env, int error, const char *syscall) {
  const char *name = name_of(error);
  char unknown[32], message[256];
  napi_value code, text, number, call, object = NULL;
  if (name == NULL) {
    snprintf(unknown, sizeof unknown, "E%d", error);
    name = unknown;
  }
  snprintf(message, sizeof message, "%s: %s, %s", name, strerror(error), syscall);
  if (napi_create_string_utf8(env, name, NAPI_AUTO_LENGTH, &code) != napi_ok ||
      napi_create_string_utf8(env, message, NAPI_AUTO_LENGTH, &text) != napi_ok ||
      napi_create_string_utf8(env, syscall, NAPI_AUTO_LENGTH, &call) != napi_ok ||
      napi_create_int32(env, -error, &number) != napi_ok ||
      napi_create_error(env, code, text, &object) != napi_ok)
    return NULL;
  napi_set_named_property(env, object, "errno", number);
  napi_set_named_property(env, object, "syscall", call);
  return object;
}

napi_value thinfs_throw(napi_env env, int error, const char *syscall) {
  napi_value object = thinfs_error(env, error, syscall);
  if (object != NULL) napi_throw(env, object);
  return NULL;
}

void thinfs_ended(napi_env env, napi_status status, napi_deferred deferred, int error,
                  const char *syscall) {
  if (status == napi_cancelled) error = ECANCELED;
  if (error == 0)
    napi_resolve_deferred(env, deferred, thinfs_undefined(env));
  else
    napi_reject_deferred(env, deferred, thinfs_error(env, error, syscall));
}

int64_t thinfs_now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

bool thinfs_exports(napi_env env, napi_value exports, const thinfs_export *functions, size_t count) {
  for (size_t i = 0; i < count; i++) {
    napi_value function;
    if (napi_create_function(env, functions[i].name, NAPI_AUTO_LENGTH, functions[i].function, NULL,
                             &function) != napi_ok ||
        napi_set_named_property(env, exports, functions[i].name, function) != napi_ok)
      return false;
  }
  return true;
}
