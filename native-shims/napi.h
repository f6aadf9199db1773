/*
 * Arguments, errors and exports, the same for every file of the addon.
 *
 * A function that fails has left a JavaScript exception pending; its caller returns NULL at once.
 */
#ifndef THINFS_NAPI_H
#define THINFS_NAPI_H

#define NAPI_VERSION 8
#include <node_api.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Fetches exactly `wanted` arguments. */
bool thinfs_arguments(napi_env env, napi_callback_info info, size_t wanted, napi_value *arguments);
/* An integer that JavaScript holds exactly; NaN and fractions are refused. */
bool thinfs_integer(napi_env env, napi_value value, int64_t *integer);
/* The same of a number that was fetched, as from a Float64Array. */
bool thinfs_whole(napi_env env, double number, int64_t *integer);
/* An integer that fits an int: descriptors, flags. */
bool thinfs_int(napi_env env, napi_value value, int *integer);
/* `length` bytes at `at` of a Buffer or typed array; outside of it is a RangeError. */
bool thinfs_bytes(napi_env env, napi_value buffer, napi_value at, napi_value length, char **bytes,
                  size_t *size);
/* A string as UTF-8, at most `size` - 1 bytes and without NUL. */
bool thinfs_string(napi_env env, napi_value value, char *string, size_t size);

napi_value thinfs_number(napi_env env, double number);
napi_value thinfs_boolean(napi_env env, bool boolean);
napi_value thinfs_undefined(napi_env env);

/* An Error with `code` (the errno's name), `errno` (negative, as Node's) and `syscall`. */
napi_value thinfs_error(napi_env env, int error, const char *syscall);
/* Throws thinfs_error(). Always returns NULL. */
napi_value thinfs_throw(napi_env env, int error, const char *syscall);
/*
 * Ends the promise of a call on the thread pool, which has ended with `status`: resolves it where
 * `error` is 0, else rejects it with thinfs_error().
 */
void thinfs_ended(napi_env env, napi_status status, napi_deferred deferred, int error,
                  const char *syscall);

/* Nanoseconds of a clock that only goes forward. */
int64_t thinfs_now_ns(void);

typedef struct {
  const char *name;
  napi_callback function;
} thinfs_export;

/* Sets each function on `exports`. */
bool thinfs_exports(napi_env env, napi_value exports, const thinfs_export *functions, size_t count);

bool thinfs_file_exports(napi_env env, napi_value exports);
bool thinfs_fuse_exports(napi_env env, napi_value exports);
bool thinfs_fuse_native_exports(napi_env env, napi_value exports);
bool thinfs_memory_exports(napi_env env, napi_value exports);
bool thinfs_mount_exports(napi_env env, napi_value exports);
bool thinfs_poll_exports(napi_env env, napi_value exports);
bool thinfs_process_exports(napi_env env, napi_value exports);
bool thinfs_rbd_exports(napi_env env, napi_value exports);
bool thinfs_ring_exports(napi_env env, napi_value exports);
bool thinfs_socket_exports(napi_env env, napi_value exports);

#endif
