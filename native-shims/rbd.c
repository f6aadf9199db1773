/*
 * Images of a Ceph cluster, by librados and librbd, which are opened when they are first needed:
 * the addon is built without their headers, and most machines have no use for them.
 *
 * Reads, writes and the like begin on the loop's thread; librbd tells of their end on a thread of
 * its own, which puts them in a list and makes a descriptor readable. All other calls may wait for
 * the cluster, and run on the thread pool.
 */
#define _GNU_SOURCE
#include "napi.h"

#include <dlfcn.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* RBD_LOCK_MODE_EXCLUSIVE of librbd.h. */
enum { LOCK_EXCLUSIVE = 0, OWNERS_MAX = 8 };
enum { READ, WRITE, ZERO, FLUSH };
enum { NAME_SIZE = 256, PATH_SIZE = 4096 };

typedef int extent_callback(uint64_t offset, size_t length, int exists, void *data);
typedef void completion_callback(void *completion, void *data);
typedef void update_callback(void *data);

/* What is used of both libraries. Source: rados/librados.h and rbd/librbd.h of Ceph 16. */
static struct {
  int (*rados_create2)(void **cluster, const char *name, const char *user, uint64_t flags);
  int (*rados_conf_read_file)(void *cluster, const char *path);
  int (*rados_conf_get)(void *cluster, const char *name, char *value, size_t size);
  int (*rados_conf_set)(void *cluster, const char *name, const char *value);
  int (*rados_connect)(void *cluster);
  void (*rados_shutdown)(void *cluster);
  int (*rados_blocklist_add)(void *cluster, char *address, uint32_t seconds);
  int (*rados_ioctx_create)(void *cluster, const char *pool, void **io);
  void (*rados_ioctx_set_namespace)(void *io, const char *name);
  void (*rados_ioctx_destroy)(void *io);
  int (*rbd_open)(void *io, const char *name, void **image, const char *snapshot);
  int (*rbd_open_read_only)(void *io, const char *name, void **image, const char *snapshot);
  int (*rbd_close)(void *image);
  int (*rbd_get_size)(void *image, uint64_t *size);
  int (*rbd_get_features)(void *image, uint64_t *features);
  int (*rbd_get_flags)(void *image, uint64_t *flags);
  int (*rbd_update_watch)(void *image, uint64_t *handle, update_callback *callback, void *data);
  int (*rbd_update_unwatch)(void *image, uint64_t handle);
  int (*rbd_diff_iterate2)(void *image, const char *from, uint64_t offset, uint64_t length,
                           uint8_t parent, uint8_t whole, extent_callback *callback, void *data);
  int (*rbd_lock_acquire)(void *image, int mode);
  int (*rbd_lock_release)(void *image);
  int (*rbd_lock_get_owners)(void *image, int *mode, char **owners, size_t *count);
  void (*rbd_lock_get_owners_cleanup)(char **owners, size_t count);
  int (*rbd_lock_break)(void *image, int mode, const char *owner);
  int (*rbd_aio_create_completion)(void *data, completion_callback *callback, void **completion);
  ssize_t (*rbd_aio_get_return_value)(void *completion);
  void (*rbd_aio_release)(void *completion);
  int (*rbd_aio_read)(void *image, uint64_t offset, size_t length, char *into, void *completion);
  int (*rbd_aio_write)(void *image, uint64_t offset, size_t length, const char *from,
                       void *completion);
  int (*rbd_aio_write_zeroes)(void *image, uint64_t offset, size_t length, void *completion,
                              int zero_flags, int flags);
  int (*rbd_aio_flush)(void *image, void *completion);
} ceph;

static const struct {
  const char *name;
  void *at;
} functions_of_ceph[] = {
#define FUNCTION(name) {#name, &ceph.name}
    FUNCTION(rados_create2), FUNCTION(rados_conf_read_file), FUNCTION(rados_conf_get),
    FUNCTION(rados_conf_set), FUNCTION(rados_connect), FUNCTION(rados_shutdown),
    FUNCTION(rados_blocklist_add), FUNCTION(rados_ioctx_create),
    FUNCTION(rados_ioctx_set_namespace), FUNCTION(rados_ioctx_destroy),
    FUNCTION(rbd_open), FUNCTION(rbd_open_read_only), FUNCTION(rbd_close), FUNCTION(rbd_get_size),
    FUNCTION(rbd_get_features), FUNCTION(rbd_get_flags), FUNCTION(rbd_update_watch),
    FUNCTION(rbd_update_unwatch), FUNCTION(rbd_diff_iterate2), FUNCTION(rbd_lock_acquire),
    FUNCTION(rbd_lock_release), FUNCTION(rbd_lock_get_owners),
    FUNCTION(rbd_lock_get_owners_cleanup), FUNCTION(rbd_lock_break),
    FUNCTION(rbd_aio_create_completion), FUNCTION(rbd_aio_get_return_value),
    FUNCTION(rbd_aio_release), FUNCTION(rbd_aio_read), FUNCTION(rbd_aio_write),
    FUNCTION(rbd_aio_write_zeroes), FUNCTION(rbd_aio_flush),
#undef FUNCTION
};

static bool is_loaded;
/* Clients that were not closed: their threads run until the process ends. */
static int nr_open;

/*
 * A process that ends would destroy the libraries' data beneath the threads of a client that is
 * still open. This is run before that, since it was registered after the libraries were opened.
 */
static void end_at_once(int status, void *data) {
  (void)data;
  if (__atomic_load_n(&nr_open, __ATOMIC_ACQUIRE) > 0) _exit(status);
}

/* rbd_load(librados, librbd): opens the libraries, once; why that failed, or an empty string. */
static napi_value rbd_load(napi_env env, napi_callback_info info) {
  napi_value arguments[2], reason;
  char names[2][NAME_SIZE], text[512] = "";
  void *libraries[2] = {NULL, NULL};
  if (!thinfs_arguments(env, info, 2, arguments) ||
      !thinfs_string(env, arguments[0], names[0], NAME_SIZE) ||
      !thinfs_string(env, arguments[1], names[1], NAME_SIZE))
    return NULL;
  for (int i = 0; i < 2 && !is_loaded && text[0] == '\0'; i++) {
    libraries[i] = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    if (libraries[i] == NULL) snprintf(text, sizeof text, "%s", dlerror());
  }
  size_t count = sizeof functions_of_ceph / sizeof *functions_of_ceph;
  for (size_t i = 0; i < count && !is_loaded && text[0] == '\0'; i++) {
    const char *name = functions_of_ceph[i].name;
    void *function = dlsym(libraries[strncmp(name, "rbd_", 4) == 0], name);
    /* Its name before Ceph 16. */
    if (function == NULL && strcmp(name, "rados_blocklist_add") == 0)
      function = dlsym(libraries[0], "rados_blacklist_add");
    if (function == NULL) snprintf(text, sizeof text, "it has no %s", name);
    *(void **)functions_of_ceph[i].at = function;
  }
  if (!is_loaded && text[0] == '\0') {
    is_loaded = true;
#ifdef __GLIBC__
    on_exit(end_at_once, NULL);
#else
    (void)end_at_once;
#endif
  }
  if (napi_create_string_utf8(env, text, NAPI_AUTO_LENGTH, &reason) != napi_ok) return NULL;
  return reason;
}

typedef struct request request;

/*
 * A client of a cluster. JavaScript, the images and calls that run hold it; librbd's threads use it
 * until it is closed. One that nobody closes is never freed.
 */
typedef struct {
  void *rados;
  int event, holders;
  bool connected, closed;
  /* Requests that have ended: pushed by librbd's threads, taken all at once by the loop's. */
  request *ended;
  /* Those that were taken and not told of. */
  request *taken;
} cluster;

typedef struct {
  cluster *of;
  void *io, *rbd;
  uint64_t watch;
  bool watched, closed;
  int holders;
  /* The request that stands for a change of the image, and whether it is in the list. */
  request *changed;
  bool is_told;
} image;

struct request {
  request *next;
  image *image;
  double tag;
  ssize_t result;
  /* Keeps the memory until the request has ended. */
  napi_ref buffer;
};

static void cluster_drop(cluster *self) {
  if (--self->holders > 0 || !self->closed) return;
  close(self->event);
  free(self);
}

static void image_drop(image *self) {
  if (--self->holders > 0 || !self->closed) return;
  /* Nobody looks at the list any more. */
  if (__atomic_load_n(&self->is_told, __ATOMIC_ACQUIRE)) return;
  cluster_drop(self->of);
  free(self->changed);
  free(self);
}

static void cluster_collected(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  cluster_drop(data);
}

static void image_collected(napi_env env, void *data, void *hint) {
  (void)env;
  (void)hint;
  image_drop(data);
}

static void *handle_argument(napi_env env, napi_value value, const char *what) {
  void *self;
  if (napi_get_value_external(env, value, &self) == napi_ok) return self;
  napi_throw_type_error(env, NULL, what);
  return NULL;
}

static cluster *cluster_argument(napi_env env, napi_value value) {
  cluster *self = handle_argument(env, value, "a cluster is expected");
  if (self == NULL || !self->closed) return self;
  thinfs_throw(env, EBADF, "rados");
  return NULL;
}

static image *image_argument(napi_env env, napi_value value) {
  image *self = handle_argument(env, value, "an image is expected");
  if (self == NULL || !self->closed) return self;
  thinfs_throw(env, EBADF, "rbd");
  return NULL;
}

/* ceph_create(user, conf): a client, as that file configures it; not connected yet. */
static napi_value ceph_create(napi_env env, napi_callback_info info) {
  napi_value arguments[2], object, external, fd;
  char user[NAME_SIZE], conf[PATH_SIZE];
  if (!thinfs_arguments(env, info, 2, arguments) ||
      !thinfs_string(env, arguments[0], user, sizeof user) ||
      !thinfs_string(env, arguments[1], conf, sizeof conf))
    return NULL;
  if (!is_loaded) return thinfs_throw(env, ENOSYS, "rados_create2");
  cluster *self = calloc(1, sizeof *self);
  if (self == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  const char *call = "rados_create2";
  int result = ceph.rados_create2(&self->rados, "ceph", user, 0);
  if (result == 0) {
    call = "rados_conf_read_file";
    result = ceph.rados_conf_read_file(self->rados, conf);
    if (result == 0) {
      call = "eventfd";
      self->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
      if (self->event < 0) result = -errno;
    }
    if (result != 0) ceph.rados_shutdown(self->rados);
  }
  if (result != 0) {
    free(self);
    return thinfs_throw(env, -result, call);
  }
  self->holders = 1;
  __atomic_add_fetch(&nr_open, 1, __ATOMIC_RELEASE);
  if (napi_create_external(env, self, cluster_collected, NULL, &external) != napi_ok ||
      napi_create_object(env, &object) != napi_ok ||
      napi_create_int32(env, self->event, &fd) != napi_ok ||
      napi_set_named_property(env, object, "cluster", external) != napi_ok ||
      napi_set_named_property(env, object, "fd", fd) != napi_ok)
    return thinfs_throw(env, ENOMEM, "napi_create_object");
  return object;
}

/* ceph_get(cluster, name): a setting. */
static napi_value ceph_get(napi_env env, napi_callback_info info) {
  napi_value arguments[2], text;
  char name[NAME_SIZE], value[PATH_SIZE];
  cluster *self;
  if (!thinfs_arguments(env, info, 2, arguments) ||
      (self = cluster_argument(env, arguments[0])) == NULL ||
      !thinfs_string(env, arguments[1], name, sizeof name))
    return NULL;
  int result = ceph.rados_conf_get(self->rados, name, value, sizeof value);
  if (result != 0) return thinfs_throw(env, -result, "rados_conf_get");
  if (napi_create_string_utf8(env, value, NAPI_AUTO_LENGTH, &text) != napi_ok) return NULL;
  return text;
}

/* ceph_set(cluster, name, value): changes one. */
static napi_value ceph_set(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  char name[NAME_SIZE], value[PATH_SIZE];
  cluster *self;
  if (!thinfs_arguments(env, info, 3, arguments) ||
      (self = cluster_argument(env, arguments[0])) == NULL ||
      !thinfs_string(env, arguments[1], name, sizeof name) ||
      !thinfs_string(env, arguments[2], value, sizeof value))
    return NULL;
  int result = ceph.rados_conf_set(self->rados, name, value);
  return result == 0 ? NULL : thinfs_throw(env, -result, "rados_conf_set");
}

/* --- calls on the thread pool --- */

typedef struct {
  uint64_t offset, length;
} extent;

typedef struct call call;
struct call {
  napi_deferred deferred;
  napi_async_work work;
  const char *name;
  /* Does it, on the thread pool: 0 or a negative errno. */
  int (*run)(call *self);
  /* What its promise resolves to; NULL: undefined. */
  napi_value (*answer)(napi_env env, call *self);
  int result;
  /* A call has one of these, which it holds. */
  cluster *cluster;
  image *image;
  char pool[NAME_SIZE], namespace[NAME_SIZE], text[NAME_SIZE];
  bool flag;
  int64_t offset, length;
  extent *extents;
  size_t nr_extents, room;
  char *owners[OWNERS_MAX];
  size_t nr_owners;
  uint64_t numbers[3];
};

static void call_free(call *self) {
  free(self->extents);
  free(self);
}

static void call_execute(napi_env env, void *data) {
  call *self = data;
  (void)env;
  self->result = self->run(self);
}

static void call_complete(napi_env env, napi_status status, void *data) {
  call *self = data;
  napi_value value = NULL;
  if (status == napi_cancelled) self->result = -ECANCELED;
  if (self->result >= 0) value = self->answer == NULL ? thinfs_undefined(env) : self->answer(env, self);
  if (value != NULL)
    napi_resolve_deferred(env, self->deferred, value);
  else
    napi_reject_deferred(env, self->deferred,
                         thinfs_error(env, self->result < 0 ? -self->result : ENOMEM, self->name));
  napi_delete_async_work(env, self->work);
  if (self->image != NULL) image_drop(self->image);
  if (self->cluster != NULL) cluster_drop(self->cluster);
  call_free(self);
}

/* Starts a call, which is freed in any case. Returns its promise. */
static napi_value call_start(napi_env env, call *self) {
  napi_value promise, name;
  if (napi_create_promise(env, &self->deferred, &promise) != napi_ok ||
      napi_create_string_utf8(env, self->name, NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_async_work(env, NULL, name, call_execute, call_complete, self, &self->work) !=
          napi_ok ||
      napi_queue_async_work(env, self->work) != napi_ok) {
    if (self->work != NULL) napi_delete_async_work(env, self->work);
    call_free(self);
    return thinfs_throw(env, ENOMEM, "napi_queue_async_work");
  }
  if (self->image != NULL) self->image->holders++;
  if (self->cluster != NULL) self->cluster->holders++;
  return promise;
}

/* A call of a function whose first argument is a cluster, if `of_image` is false, or an image. */
static call *call_new(napi_env env, const char *name, int (*run)(call *), bool of_image,
                      napi_value of) {
  call *self = calloc(1, sizeof *self);
  if (self == NULL) {
    thinfs_throw(env, ENOMEM, "malloc");
    return NULL;
  }
  self->name = name;
  self->run = run;
  if (of_image)
    self->image = image_argument(env, of);
  else
    self->cluster = cluster_argument(env, of);
  if (self->image != NULL || self->cluster != NULL) return self;
  free(self);
  return NULL;
}

static int connect_run(call *self) {
  int result = ceph.rados_connect(self->cluster->rados);
  if (result == 0) self->cluster->connected = true;
  return result;
}

/* ceph_connect(cluster): connects; a promise. */
static napi_value ceph_connect(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rados_connect", connect_run, false, arguments[0]);
  return self == NULL ? NULL : call_start(env, self);
}

static int blocklist_run(call *self) {
  return ceph.rados_blocklist_add(self->cluster->rados, self->text, (uint32_t)self->length);
}

/* ceph_blocklist(cluster, address, seconds): the cluster refuses that client from then on. */
static napi_value ceph_blocklist(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  call *self;
  if (!thinfs_arguments(env, info, 3, arguments) ||
      (self = call_new(env, "rados_blocklist_add", blocklist_run, false, arguments[0])) == NULL)
    return NULL;
  if (!thinfs_string(env, arguments[1], self->text, sizeof self->text) ||
      !thinfs_integer(env, arguments[2], &self->length)) {
    call_free(self);
    return NULL;
  }
  return call_start(env, self);
}

static int close_cluster_run(call *self) {
  ceph.rados_shutdown(self->cluster->rados);
  __atomic_sub_fetch(&nr_open, 1, __ATOMIC_RELEASE);
  return 0;
}

/* ceph_close(cluster): ends the client, whose images are closed; a promise. */
static napi_value ceph_close(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rados_shutdown", close_cluster_run, false, arguments[0]);
  if (self == NULL) return NULL;
  cluster *of = self->cluster;
  napi_value promise = call_start(env, self);
  if (promise != NULL) of->closed = true;
  return promise;
}

static void ended_push(cluster *of, request *one) {
  request *head = __atomic_load_n(&of->ended, __ATOMIC_RELAXED);
  do one->next = head;
  while (!__atomic_compare_exchange_n(&of->ended, &head, one, true, __ATOMIC_RELEASE,
                                      __ATOMIC_RELAXED));
  /* It fails only by being readable already. */
  (void)!eventfd_write(of->event, 1);
}

/* On a thread of librbd's: the image's header has changed, as by a resize. */
static void image_changed(void *data) {
  image *self = data;
  if (!__atomic_exchange_n(&self->is_told, true, __ATOMIC_ACQ_REL))
    ended_push(self->of, self->changed);
}

static int open_run(call *self) {
  image *opened = calloc(1, sizeof *opened);
  request *changed = calloc(1, sizeof *changed);
  int result = opened == NULL || changed == NULL ? -ENOMEM : 0;
  if (result == 0)
    result = ceph.rados_ioctx_create(self->cluster->rados, self->pool, &opened->io);
  if (result == 0) {
    ceph.rados_ioctx_set_namespace(opened->io, self->namespace);
    result = (self->flag ? ceph.rbd_open_read_only : ceph.rbd_open)(opened->io, self->text,
                                                                    &opened->rbd, NULL);
    if (result < 0) ceph.rados_ioctx_destroy(opened->io);
  }
  if (result < 0) {
    free(opened);
    free(changed);
    return result;
  }
  opened->of = self->cluster;
  opened->changed = changed;
  changed->image = opened;
  changed->tag = self->offset;
  /* Without it a resize is not noticed; nothing else is lost. */
  opened->watched =
      ceph.rbd_update_watch(opened->rbd, &opened->watch, image_changed, opened) == 0;
  self->image = opened;
  return 0;
}

static napi_value open_answer(napi_env env, call *self) {
  napi_value external = NULL;
  /* One of JavaScript's, one that call_complete() drops. */
  self->image->holders = 2;
  self->cluster->holders++;
  if (napi_create_external(env, self->image, image_collected, NULL, &external) != napi_ok)
    return NULL;
  return external;
}

/*
 * rbd_open(cluster, pool, namespace, name, readOnly, tag): an image; a promise. What changes its
 * header ends as a request with that tag.
 */
static napi_value rbd_open(napi_env env, napi_callback_info info) {
  napi_value arguments[6];
  call *self;
  if (!thinfs_arguments(env, info, 6, arguments) ||
      (self = call_new(env, "rbd_open", open_run, false, arguments[0])) == NULL)
    return NULL;
  if (!thinfs_string(env, arguments[1], self->pool, sizeof self->pool) ||
      !thinfs_string(env, arguments[2], self->namespace, sizeof self->namespace) ||
      !thinfs_string(env, arguments[3], self->text, sizeof self->text) ||
      !thinfs_integer(env, arguments[5], &self->offset)) {
    call_free(self);
    return NULL;
  }
  if (napi_get_value_bool(env, arguments[4], &self->flag) != napi_ok) {
    call_free(self);
    napi_throw_type_error(env, NULL, "a boolean is expected");
    return NULL;
  }
  self->answer = open_answer;
  return call_start(env, self);
}

static int close_image_run(call *self) {
  image *of = self->image;
  if (of->watched) ceph.rbd_update_unwatch(of->rbd, of->watch);
  int result = ceph.rbd_close(of->rbd);
  ceph.rados_ioctx_destroy(of->io);
  return result;
}

/* rbd_close(image): closes it; all requests have ended; a promise. */
static napi_value rbd_close(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rbd_close", close_image_run, true, arguments[0]);
  if (self == NULL) return NULL;
  image *of = self->image;
  napi_value promise = call_start(env, self);
  if (promise != NULL) of->closed = true;
  return promise;
}

static napi_value doubles(napi_env env, size_t count, double **numbers) {
  napi_value buffer, array;
  if (napi_create_arraybuffer(env, count * sizeof **numbers, (void **)numbers, &buffer) != napi_ok ||
      napi_create_typedarray(env, napi_float64_array, count, buffer, 0, &array) != napi_ok)
    return NULL;
  return array;
}

static int status_run(call *self) {
  void *rbd = self->image->rbd;
  int result = ceph.rbd_get_size(rbd, &self->numbers[0]);
  if (result == 0) result = ceph.rbd_get_features(rbd, &self->numbers[1]);
  if (result == 0) result = ceph.rbd_get_flags(rbd, &self->numbers[2]);
  return result;
}

static napi_value status_answer(napi_env env, call *self) {
  double *numbers;
  napi_value array = doubles(env, 3, &numbers);
  for (int i = 0; array != NULL && i < 3; i++) numbers[i] = (double)self->numbers[i];
  return array;
}

/* rbd_status(image): its size in bytes, its features and its flags; a promise. */
static napi_value rbd_status(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rbd_get_size", status_run, true, arguments[0]);
  if (self == NULL) return NULL;
  self->answer = status_answer;
  return call_start(env, self);
}

static int extent_found(uint64_t offset, size_t length, int exists, void *data) {
  call *self = data;
  extent *last = self->nr_extents == 0 ? NULL : &self->extents[self->nr_extents - 1];
  if (!exists) return 0;
  if (last != NULL && last->offset + last->length == offset) {
    last->length += length;
    return 0;
  }
  if (self->nr_extents == self->room) {
    size_t room = self->room == 0 ? 64 : 2 * self->room;
    extent *more = realloc(self->extents, room * sizeof *more);
    if (more == NULL) return -ENOMEM;
    self->extents = more;
    self->room = room;
  }
  self->extents[self->nr_extents++] = (extent){offset, length};
  return 0;
}

static int extents_run(call *self) {
  return ceph.rbd_diff_iterate2(self->image->rbd, NULL, (uint64_t)self->offset,
                                (uint64_t)self->length, 1, 1, extent_found, self);
}

static napi_value extents_answer(napi_env env, call *self) {
  double *numbers;
  napi_value array = doubles(env, 2 * self->nr_extents, &numbers);
  for (size_t i = 0; array != NULL && i < self->nr_extents; i++) {
    numbers[2 * i] = (double)self->extents[i].offset;
    numbers[2 * i + 1] = (double)self->extents[i].length;
  }
  return array;
}

/*
 * rbd_extents(image, offset, length): offsets and lengths of the objects that exist, as the object
 * map knows them; a promise.
 */
static napi_value rbd_extents(napi_env env, napi_callback_info info) {
  napi_value arguments[3];
  call *self;
  if (!thinfs_arguments(env, info, 3, arguments) ||
      (self = call_new(env, "rbd_diff_iterate2", extents_run, true, arguments[0])) == NULL)
    return NULL;
  if (!thinfs_integer(env, arguments[1], &self->offset) ||
      !thinfs_integer(env, arguments[2], &self->length)) {
    call_free(self);
    return NULL;
  }
  self->answer = extents_answer;
  return call_start(env, self);
}

static int acquire_run(call *self) {
  return ceph.rbd_lock_acquire(self->image->rbd, LOCK_EXCLUSIVE);
}

/* rbd_lock(image): the exclusive lock, which no other client is given on asking; a promise. */
static napi_value rbd_lock(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rbd_lock_acquire", acquire_run, true, arguments[0]);
  return self == NULL ? NULL : call_start(env, self);
}

static int release_run(call *self) { return ceph.rbd_lock_release(self->image->rbd); }

/* rbd_unlock(image): gives the lock up; a promise. */
static napi_value rbd_unlock(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rbd_lock_release", release_run, true, arguments[0]);
  return self == NULL ? NULL : call_start(env, self);
}

static int owners_run(call *self) {
  int mode;
  self->nr_owners = OWNERS_MAX;
  int result = ceph.rbd_lock_get_owners(self->image->rbd, &mode, self->owners, &self->nr_owners);
  if (result < 0) self->nr_owners = 0;
  return result == -ENOENT ? 0 : result;
}

static napi_value owners_answer(napi_env env, call *self) {
  napi_value array = NULL, owner;
  bool made = napi_create_array_with_length(env, self->nr_owners, &array) == napi_ok;
  for (size_t i = 0; made && i < self->nr_owners; i++)
    made = napi_create_string_utf8(env, self->owners[i], NAPI_AUTO_LENGTH, &owner) == napi_ok &&
           napi_set_element(env, array, (uint32_t)i, owner) == napi_ok;
  if (self->nr_owners > 0) ceph.rbd_lock_get_owners_cleanup(self->owners, self->nr_owners);
  return made ? array : NULL;
}

/* rbd_lock_owners(image): the addresses of the clients that have the lock; a promise. */
static napi_value rbd_lock_owners(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  call *self = call_new(env, "rbd_lock_get_owners", owners_run, true, arguments[0]);
  if (self == NULL) return NULL;
  self->answer = owners_answer;
  return call_start(env, self);
}

static int break_run(call *self) {
  return ceph.rbd_lock_break(self->image->rbd, LOCK_EXCLUSIVE, self->text);
}

/*
 * rbd_lock_break(image, owner): takes the lock from that client, which the cluster refuses from
 * then on; another owner is EBUSY; a promise.
 */
static napi_value rbd_lock_break(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  call *self;
  if (!thinfs_arguments(env, info, 2, arguments) ||
      (self = call_new(env, "rbd_lock_break", break_run, true, arguments[0])) == NULL)
    return NULL;
  if (!thinfs_string(env, arguments[1], self->text, sizeof self->text)) {
    call_free(self);
    return NULL;
  }
  return call_start(env, self);
}

/* --- requests --- */

/* On a thread of librbd's. */
static void request_ended(void *completion, void *data) {
  request *self = data;
  self->result = ceph.rbd_aio_get_return_value(completion);
  ceph.rbd_aio_release(completion);
  ended_push(self->image->of, self);
}

static napi_value request_start(napi_env env, napi_value of, napi_value tag, int kind,
                                napi_value buffer, uint64_t offset, uint64_t length) {
  image *target = image_argument(env, of);
  int64_t number;
  void *completion, *bytes = NULL;
  size_t size = length;
  if (target == NULL || !thinfs_integer(env, tag, &number)) return NULL;
  if (buffer != NULL && napi_get_buffer_info(env, buffer, &bytes, &size) != napi_ok) {
    napi_throw_type_error(env, NULL, "a buffer is expected");
    return NULL;
  }
  request *self = calloc(1, sizeof *self);
  if (self == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  self->image = target;
  self->tag = (double)number;
  if (buffer != NULL && napi_create_reference(env, buffer, 1, &self->buffer) != napi_ok) {
    free(self);
    return thinfs_throw(env, ENOMEM, "napi_create_reference");
  }
  const char *call = "rbd_aio_create_completion";
  int result = ceph.rbd_aio_create_completion(self, request_ended, &completion);
  if (result >= 0) {
    switch (kind) {
      case READ:
        call = "rbd_aio_read";
        result = ceph.rbd_aio_read(target->rbd, offset, size, bytes, completion);
        break;
      case WRITE:
        call = "rbd_aio_write";
        result = ceph.rbd_aio_write(target->rbd, offset, size, bytes, completion);
        break;
      case ZERO:
        call = "rbd_aio_write_zeroes";
        result = ceph.rbd_aio_write_zeroes(target->rbd, offset, size, completion, 0, 0);
        break;
      default:
        call = "rbd_aio_flush";
        result = ceph.rbd_aio_flush(target->rbd, completion);
    }
    if (result < 0) ceph.rbd_aio_release(completion);
  }
  if (result < 0) {
    if (self->buffer != NULL) napi_delete_reference(env, self->buffer);
    free(self);
    return thinfs_throw(env, -result, call);
  }
  target->holders++;
  return NULL;
}

/* rbd_read(image, tag, into, offset): begins to fill a buffer. */
static napi_value rbd_read(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int64_t offset;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_integer(env, arguments[3], &offset))
    return NULL;
  return request_start(env, arguments[0], arguments[1], READ, arguments[2], (uint64_t)offset, 0);
}

/* rbd_write(image, tag, from, offset): begins to write one. */
static napi_value rbd_write(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int64_t offset;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_integer(env, arguments[3], &offset))
    return NULL;
  return request_start(env, arguments[0], arguments[1], WRITE, arguments[2], (uint64_t)offset, 0);
}

/*
 * rbd_zero(image, tag, offset, length): begins to make a range zeros, without space where possible.
 */
static napi_value rbd_zero(napi_env env, napi_callback_info info) {
  napi_value arguments[4];
  int64_t offset, length;
  if (!thinfs_arguments(env, info, 4, arguments) || !thinfs_integer(env, arguments[2], &offset) ||
      !thinfs_integer(env, arguments[3], &length))
    return NULL;
  return request_start(env, arguments[0], arguments[1], ZERO, NULL, (uint64_t)offset,
                       (uint64_t)length);
}

/* rbd_flush(image, tag): begins to make durable what was written. */
static napi_value rbd_flush(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  if (!thinfs_arguments(env, info, 2, arguments)) return NULL;
  return request_start(env, arguments[0], arguments[1], FLUSH, NULL, 0, 0);
}

/*
 * ceph_ended(cluster, pairs): puts the tags and results of requests that have ended into a
 * Float64Array; how many. The descriptor is readable no more once there are fewer than have room.
 */
static napi_value ceph_ended(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  napi_typedarray_type type;
  size_t length, count = 0;
  void *data;
  eventfd_t ignored;
  cluster *self;
  if (!thinfs_arguments(env, info, 2, arguments) ||
      (self = cluster_argument(env, arguments[0])) == NULL)
    return NULL;
  if (napi_get_typedarray_info(env, arguments[1], &type, &length, &data, NULL, NULL) != napi_ok ||
      type != napi_float64_array) {
    napi_throw_type_error(env, NULL, "a Float64Array is expected");
    return NULL;
  }
  double *pairs = data;
  /* First the descriptor: what is pushed after the list was taken makes it readable again. */
  if (self->taken == NULL) {
    (void)!eventfd_read(self->event, &ignored);
    self->taken = __atomic_exchange_n(&self->ended, NULL, __ATOMIC_ACQUIRE);
  }
  for (; self->taken != NULL && count < length / 2; count++) {
    request *one = self->taken;
    image *of = one->image;
    self->taken = one->next;
    pairs[2 * count] = one->tag;
    pairs[2 * count + 1] = (double)one->result;
    if (one == of->changed) {
      __atomic_store_n(&of->is_told, false, __ATOMIC_RELEASE);
      continue;
    }
    if (one->buffer != NULL) napi_delete_reference(env, one->buffer);
    free(one);
    image_drop(of);
  }
  if (self->taken != NULL) (void)!eventfd_write(self->event, 1);
  return thinfs_number(env, (double)count);
}

/*
 * system_error(errno, call): the Error of a call that resulted in that errno, positive or negative.
 */
static napi_value system_error(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  char call[64];
  int error;
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_int(env, arguments[0], &error) ||
      !thinfs_string(env, arguments[1], call, sizeof call))
    return NULL;
  return thinfs_error(env, error < 0 ? -error : error, call);
}

bool thinfs_rbd_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"ceph_blocklist", ceph_blocklist},
      {"ceph_close", ceph_close},
      {"ceph_connect", ceph_connect},
      {"ceph_create", ceph_create},
      {"ceph_ended", ceph_ended},
      {"ceph_get", ceph_get},
      {"ceph_set", ceph_set},
      {"rbd_close", rbd_close},
      {"rbd_extents", rbd_extents},
      {"rbd_flush", rbd_flush},
      {"rbd_load", rbd_load},
      {"rbd_lock", rbd_lock},
      {"rbd_lock_break", rbd_lock_break},
      {"rbd_lock_owners", rbd_lock_owners},
      {"rbd_open", rbd_open},
      {"rbd_read", rbd_read},
      {"rbd_status", rbd_status},
      {"rbd_unlock", rbd_unlock},
      {"rbd_write", rbd_write},
      {"rbd_zero", rbd_zero},
      {"system_error", system_error},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
