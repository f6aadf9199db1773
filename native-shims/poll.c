/* Readiness of a descriptor in libuv's loop. */
#include "napi.h"

#include <errno.h>
#include <stdlib.h>

/*
 * libuv, as far as it is needed: node-api-headers has no uv.h. These names and numbers belong to
 * libuv's stable ABI, and uv_handle_size() spares us the structure.
 */
typedef struct uv_handle_s uv_handle_t;
enum { UV_POLL = 8, UV_READABLE = 1 };
size_t uv_handle_size(int type);
int uv_poll_init(struct uv_loop_s *loop, uv_handle_t *poll, int fd);
int uv_poll_start(uv_handle_t *poll, int events, void (*callback)(uv_handle_t *, int, int));
void uv_close(uv_handle_t *handle, void (*callback)(uv_handle_t *));
void uv_handle_set_data(uv_handle_t *handle, void *data);
void *uv_handle_get_data(const uv_handle_t *handle);

/*
 * A watch on a descriptor. libuv still owns `handle` for a moment after uv_close(), and JavaScript
 * may hold `external` for longer, so each of the two ends on its own and the last frees the memory.
 */
typedef struct {
  napi_env env;
  napi_ref callback;
  napi_async_context context;
  napi_async_cleanup_hook_handle cleanup;
  uv_handle_t *handle;
  bool closing, closed, collected;
} watch;

static void watch_free(watch *self) {
  if (!self->closed || !self->collected) return;
  free(self->handle);
  free(self);
}

static void watch_readable(uv_handle_t *handle, int status, int events) {
  watch *self = uv_handle_get_data(handle);
  napi_env env = self->env;
  napi_handle_scope scope;
  napi_value callback, receiver, error;
  /* `status` is not looked at: after an error the read that follows reports it. */
  (void)status;
  (void)events;
  if (napi_open_handle_scope(env, &scope) != napi_ok) return;
  if (napi_get_reference_value(env, self->callback, &callback) == napi_ok &&
      napi_get_global(env, &receiver) == napi_ok &&
      napi_make_callback(env, self->context, receiver, callback, 0, NULL, NULL) ==
          napi_pending_exception &&
      napi_get_and_clear_last_exception(env, &error) == napi_ok)
    napi_fatal_exception(env, error);
  napi_close_handle_scope(env, scope);
}

static void watch_closed(uv_handle_t *handle) {
  watch *self = uv_handle_get_data(handle);
  if (self->cleanup != NULL) napi_remove_async_cleanup_hook(self->cleanup);
  self->closed = true;
  watch_free(self);
}

static void watch_close(watch *self) {
  if (self->closing) return;
  self->closing = true;
  napi_delete_reference(self->env, self->callback);
  napi_async_destroy(self->env, self->context);
  uv_close(self->handle, watch_closed);
}

static void watch_collected(napi_env env, void *data, void *hint) {
  watch *self = data;
  (void)env;
  (void)hint;
  self->collected = true;
  watch_close(self);
  watch_free(self);
}

static void watch_cleanup(napi_async_cleanup_hook_handle hook, void *data) {
  (void)hook;
  watch_close(data);
}

/*
 * poll_watch(fd, callback): calls back, promises included, as long as the descriptor is readable or
 * broken. Keeps the process alive until poll_unwatch().
 */
static napi_value poll_watch(napi_env env, napi_callback_info info) {
  napi_value arguments[2], name, external;
  int fd;
  struct uv_loop_s *loop;
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_int(env, arguments[0], &fd)) return NULL;
  watch *self = calloc(1, sizeof *self);
  uv_handle_t *handle = calloc(1, uv_handle_size(UV_POLL));
  if (self == NULL || handle == NULL) {
    free(handle);
    free(self);
    return thinfs_throw(env, ENOMEM, "malloc");
  }
  self->env = env;
  self->handle = handle;
  napi_get_uv_event_loop(env, &loop);
  int error = uv_poll_init(loop, handle, fd);
  if (error != 0) {
    free(handle);
    free(self);
    return thinfs_throw(env, -error, "uv_poll_init");
  }
  uv_handle_set_data(handle, self);
  napi_create_string_utf8(env, "thinfs:poll", NAPI_AUTO_LENGTH, &name);
  if (napi_create_reference(env, arguments[1], 1, &self->callback) != napi_ok ||
      napi_async_init(env, NULL, name, &self->context) != napi_ok ||
      napi_add_async_cleanup_hook(env, watch_cleanup, self, &self->cleanup) != napi_ok ||
      napi_create_external(env, self, watch_collected, NULL, &external) != napi_ok) {
    self->collected = true;
    watch_close(self);
    napi_throw_type_error(env, NULL, "a function is expected");
    return NULL;
  }
  error = uv_poll_start(handle, UV_READABLE, watch_readable);
  if (error != 0) {
    watch_close(self);
    return thinfs_throw(env, -error, "uv_poll_start");
  }
  return external;
}

/* poll_unwatch(watch): no more calls back. */
static napi_value poll_unwatch(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  void *self;
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  if (napi_get_value_external(env, arguments[0], &self) != napi_ok) {
    napi_throw_type_error(env, NULL, "a watch is expected");
    return NULL;
  }
  watch_close(self);
  return NULL;
}

bool thinfs_poll_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"poll_watch", poll_watch},
      {"poll_unwatch", poll_unwatch},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
