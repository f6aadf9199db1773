/*
 * The operations that the npm package fuse-native lacks, added without changing it.
 *
 * fuse-native calls fuse_mount, fuse_new, fuse_loop_mt and fuse_unmount of libfuse 2. This addon
 * exports functions of the same names. fuse_native_bind() puts the addon into the global symbol
 * scope, where the dynamic linker looks first, so that fuse-native, loaded afterwards, calls these
 * functions. They pass on to libfuse what they do not do themselves. They add:
 *
 * - fallocate, which libfuse 2.9 has and fuse-native does not fill in: discards depend on it;
 * - a mount that somebody else has made, by its descriptor, closed on exec;
 * - a fixed number of threads: fuse-native never frees what it keeps for a thread that ended;
 * - operations on an open file that has no name any more: libfuse passes no path for it, and
 *   fuse-native needs one;
 * - the modification time in utimens, which fuse-native replaces by the access time;
 * - the user who creates a file.
 *
 * The declarations below are libfuse 2.9's binary interface, as far as it is needed.
 */
#define _GNU_SOURCE
#include "napi.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

struct fuse;
struct fuse_args;
struct fuse_chan;
struct fuse_session;

struct file_info {
  int flags;
  unsigned long old_handle;
  int writepage;
  unsigned int bits;
  uint64_t handle;
  uint64_t lock_owner;
};

struct connection {
  unsigned int major, minor, async_read, max_write, max_readahead, capable, want;
  unsigned int max_background, congestion_threshold, reserved[23];
};

struct context {
  struct fuse *fuse;
  uid_t uid;
  gid_t gid;
  pid_t pid;
  void *private_data;
  mode_t umask;
};

/* struct fuse_operations. The shim replaces those that have a type here. */
struct operations {
  void *getattr_to_readlink[2], *getdir;
  int (*mknod)(const char *, mode_t, dev_t);
  void *mkdir_to_open[11];
  int (*read)(const char *, char *, size_t, off_t, struct file_info *);
  int (*write)(const char *, const char *, size_t, off_t, struct file_info *);
  void *statfs_to_flush[2];
  int (*release)(const char *, struct file_info *);
  int (*fsync)(const char *, int, struct file_info *);
  void *setxattr_to_opendir[5];
  int (*readdir)(const char *, void *, void *, off_t, struct file_info *);
  void *releasedir;
  int (*fsyncdir)(const char *, int, struct file_info *);
  void *(*init)(struct connection *);
  void *destroy_to_access[2];
  int (*create)(const char *, mode_t, struct file_info *);
  int (*ftruncate)(const char *, off_t, struct file_info *);
  int (*fgetattr)(const char *, struct stat *, struct file_info *);
  void *lock;
  int (*utimens)(const char *, const struct timespec[2]);
  void *bmap;
  unsigned int flags, padding;
  void *ioctl_to_flock[5];
  int (*fallocate)(const char *, int, off_t, off_t, struct file_info *);
};
_Static_assert(offsetof(struct operations, read) == 15 * sizeof(void *), "as in libfuse 2.9");
_Static_assert(offsetof(struct operations, init) == 29 * sizeof(void *), "as in libfuse 2.9");
_Static_assert(offsetof(struct operations, utimens) == 36 * sizeof(void *), "as in libfuse 2.9");
_Static_assert(offsetof(struct operations, fallocate) == 44 * sizeof(void *), "as in libfuse 2.9");

/* Bits of `flags`: an open file needs no path, none is made for it, and times may be left out. */
enum { NULLPATH_OK = 1, NOPATH = 2, UTIME_OMIT_OK = 4 };
enum { CAP_BIG_WRITES = 1 << 5 };
/*
 * Threads. Each request holds one until it is answered, and writes may wait for space for a minute:
 * so many that what frees space finds one. Part of them take what the kernel sends ahead of its
 * readers.
 */
enum { WORKERS = 64, BACKGROUND = 48, CONGESTION = 36, STACK = 512 << 10 };

/* The operations that libfuse offers. */
static struct {
  struct fuse_chan *(*kern_chan_new)(int);
  struct fuse *(*new)(struct fuse_chan *, struct fuse_args *, const struct operations *, size_t, void *);
  struct context *(*get_context)(void);
  struct fuse_session *(*get_session)(struct fuse *);
  struct fuse_chan *(*next_chan)(struct fuse_session *, struct fuse_chan *);
  size_t (*chan_bufsize)(struct fuse_chan *);
  int (*chan_fd)(struct fuse_chan *);
  int (*chan_recv)(struct fuse_chan **, char *, size_t);
  void (*session_process)(struct fuse_session *, const char *, size_t, struct fuse_chan *);
} libfuse;

/*
 * A fallocate that a thread waits for. `number` tells it from those before it in the same thread.
 */
static struct {
  uint32_t number;
  bool waits;
  int result;
  sem_t answered;
} calls[WORKERS];
static pthread_mutex_t calls_mutex = PTHREAD_MUTEX_INITIALIZER;
static _Thread_local int worker_index = -1;

/* The one mount of this process. */
static struct operations theirs;
static struct connection agreed;
static int mount_fd = -1;
static napi_threadsafe_function to_javascript;
static atomic_int nr_mounts, nr_news, nr_loops;
static atomic_bool has_ended;
/* Creations take turns: who asks cannot be passed along with them. */
static pthread_mutex_t creator_mutex = PTHREAD_MUTEX_INITIALIZER;
static uid_t creator_uid;
static gid_t creator_gid;

typedef struct {
  double id, handle, mode, offset, length;
} message;

static bool tell(double id, double handle, double mode, double offset, double length) {
  message *sent = malloc(sizeof *sent);
  if (sent == NULL) return false;
  *sent = (message){id, handle, mode, offset, length};
  if (napi_call_threadsafe_function(to_javascript, sent, napi_tsfn_nonblocking) == napi_ok)
    return true;
  free(sent);
  return false;
}

static void deliver(napi_env env, napi_value callback, void *context, void *data) {
  message *sent = data;
  napi_value receiver, arguments[5];
  (void)context;
  if (env != NULL && napi_get_undefined(env, &receiver) == napi_ok) {
    const double numbers[5] = {sent->id, sent->handle, sent->mode, sent->offset, sent->length};
    for (int i = 0; i < 5; i++) arguments[i] = thinfs_number(env, numbers[i]);
    napi_call_function(env, receiver, callback, 5, arguments, NULL);
  }
  free(sent);
}

/* --- operations, on libfuse's threads --- */

static const char *named(const char *path) { return path == NULL ? "" : path; }

static int shim_read(const char *path, char *to, size_t size, off_t offset, struct file_info *info) {
  return theirs.read(named(path), to, size, offset, info);
}

static int shim_write(const char *path, const char *from, size_t size, off_t offset,
                      struct file_info *info) {
  return theirs.write(named(path), from, size, offset, info);
}

static int shim_release(const char *path, struct file_info *info) {
  return theirs.release(named(path), info);
}

static int shim_fsync(const char *path, int data_only, struct file_info *info) {
  return theirs.fsync(named(path), data_only, info);
}

static int shim_ftruncate(const char *path, off_t size, struct file_info *info) {
  return theirs.ftruncate(named(path), size, info);
}

static int shim_fgetattr(const char *path, struct stat *stat, struct file_info *info) {
  return theirs.fgetattr(named(path), stat, info);
}

static int shim_readdir(const char *path, void *to, void *fill, off_t offset,
                        struct file_info *info) {
  return theirs.readdir(named(path), to, fill, offset, info);
}

static int shim_fsyncdir(const char *path, int data_only, struct file_info *info) {
  return theirs.fsyncdir(named(path), data_only, info);
}

static void remember_creator(void) {
  const struct context *context = libfuse.get_context();
  creator_uid = context->uid;
  creator_gid = context->gid;
}

static int shim_create(const char *path, mode_t mode, struct file_info *info) {
  pthread_mutex_lock(&creator_mutex);
  remember_creator();
  int result = theirs.create(path, mode, info);
  pthread_mutex_unlock(&creator_mutex);
  return result;
}

static int shim_mknod(const char *path, mode_t mode, dev_t device) {
  pthread_mutex_lock(&creator_mutex);
  remember_creator();
  int result = theirs.mknod(path, mode, device);
  pthread_mutex_unlock(&creator_mutex);
  return result;
}

/* fuse-native passes the first of the two times on, twice. */
static int shim_utimens(const char *path, const struct timespec times[2]) {
  struct timespec modified = times[1];
  if (modified.tv_nsec == UTIME_OMIT) return 0;
  if (modified.tv_nsec == UTIME_NOW) clock_gettime(CLOCK_REALTIME, &modified);
  const struct timespec both[2] = {modified, modified};
  return theirs.utimens(path, both);
}

static int shim_fallocate(const char *path, int mode, off_t offset, off_t length,
                          struct file_info *info) {
  int i = worker_index;
  (void)path;
  if (i < 0) return -EIO;
  pthread_mutex_lock(&calls_mutex);
  calls[i].waits = true;
  double id = (double)++calls[i].number * WORKERS + i;
  pthread_mutex_unlock(&calls_mutex);
  /* Nobody is there to answer once the process ends. */
  if (!tell(id, (double)info->handle, mode, (double)offset, (double)length)) return -EIO;
  while (sem_wait(&calls[i].answered) != 0) continue;
  return calls[i].result;
}

static void *shim_init(struct connection *connection) {
  connection->want |= connection->capable & CAP_BIG_WRITES;
  connection->max_background = BACKGROUND;
  connection->congestion_threshold = CONGESTION;
  agreed = *connection;
  return theirs.init(connection);
}

/* --- what fuse-native calls --- */

#define EXPORTED __attribute__((visibility("default")))

EXPORTED struct fuse_chan *fuse_mount(const char *mount_point, struct fuse_args *arguments) {
  (void)mount_point;
  (void)arguments;
  int fd = mount_fd;
  mount_fd = -1;
  atomic_fetch_add(&nr_mounts, 1);
  return fd < 0 ? NULL : libfuse.kern_chan_new(fd);
}

EXPORTED struct fuse *fuse_new(struct fuse_chan *channel, struct fuse_args *arguments,
                               const struct operations *operations, size_t size, void *data) {
  if (size != sizeof theirs) return NULL;
  theirs = *operations;
  struct operations ours = theirs;
  ours.read = shim_read;
  ours.write = shim_write;
  ours.release = shim_release;
  ours.fsync = shim_fsync;
  ours.ftruncate = shim_ftruncate;
  ours.fgetattr = shim_fgetattr;
  ours.readdir = shim_readdir;
  ours.fsyncdir = shim_fsyncdir;
  ours.create = shim_create;
  ours.mknod = shim_mknod;
  ours.utimens = shim_utimens;
  ours.init = shim_init;
  ours.fallocate = shim_fallocate;
  ours.flags = NULLPATH_OK | NOPATH | UTIME_OMIT_OK;
  atomic_fetch_add(&nr_news, 1);
  return libfuse.new(channel, arguments, &ours, sizeof ours, data);
}

/* The mount belongs to whoever made it. */
EXPORTED void fuse_unmount(const char *mount_point, struct fuse_chan *channel) {
  (void)mount_point;
  (void)channel;
}

struct worker {
  pthread_t thread;
  int index;
  struct fuse_session *session;
};

static void *work(void *argument) {
  const struct worker *self = argument;
  worker_index = self->index;
  struct fuse_chan *channel = libfuse.next_chan(self->session, NULL);
  size_t size = libfuse.chan_bufsize(channel);
  char *request = malloc(size);
  int got = request == NULL ? -ENOMEM : 0;
  while (request != NULL) {
    struct fuse_chan *from = channel;
    got = libfuse.chan_recv(&from, request, size);
    if (got == -EINTR) continue;
    if (got == -EAGAIN) {
      struct pollfd waiting = {.fd = libfuse.chan_fd(channel), .events = POLLIN};
      poll(&waiting, 1, -1);
      continue;
    }
    if (got <= 0) break;
    libfuse.session_process(self->session, request, (size_t)got, from);
  }
  free(request);
  /* 0: unmounted. */
  if (!atomic_exchange(&has_ended, true)) tell(-1, -got, 0, 0, 0);
  return NULL;
}

EXPORTED int fuse_loop_mt(struct fuse *fuse) {
  static struct worker workers[WORKERS];
  struct fuse_session *session = libfuse.get_session(fuse);
  pthread_attr_t attributes;
  int started = 0, failed = 0;
  atomic_fetch_add(&nr_loops, 1);
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, STACK);
  while (started < WORKERS && failed == 0) {
    workers[started] = (struct worker){.index = started, .session = session};
    sem_init(&calls[started].answered, 0, 0);
    failed = pthread_create(&workers[started].thread, &attributes, work, &workers[started]);
    if (failed == 0) started++;
  }
  pthread_attr_destroy(&attributes);
  if (failed != 0 && !atomic_exchange(&has_ended, true)) tell(-1, failed, 0, 0, 0);
  for (int i = 0; i < started; i++) pthread_join(workers[i].thread, NULL);
  return 0;
}

/* --- for JavaScript --- */

static const char *const INTERPOSED[] = {"fuse_mount", "fuse_new", "fuse_unmount", "fuse_loop_mt"};

static void *self_handle(int flags) {
  Dl_info self;
  if (dladdr(INTERPOSED, &self) == 0) return NULL;
  return dlopen(self.dli_fname, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE | flags);
}

/*
 * Whether what is found first under their names is what is here. A version would be none of the
 * shim's.
 */
static bool is_bound(void) {
  void *self = self_handle(0);
  if (self == NULL) return false;
  for (size_t i = 0; i < sizeof INTERPOSED / sizeof *INTERPOSED; i++) {
    void *found = dlsym(RTLD_DEFAULT, INTERPOSED[i]);
    if (found == NULL || found != dlsym(self, INTERPOSED[i])) return false;
  }
  return true;
}

static napi_value refuse(napi_env env, const char *reason) {
  napi_throw_error(env, NULL, reason == NULL ? "unknown reason" : reason);
  return NULL;
}

/*
 * fuse_native_bind(library): opens libfuse 2, the one that is loaded already, else the file
 * `library`, else the system's, and makes fuse-native, which must not be loaded yet, call the shim.
 */
static napi_value fuse_native_bind(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  char path[PATH_MAX];
  if (!thinfs_arguments(env, info, 1, arguments) ||
      !thinfs_string(env, arguments[0], path, sizeof path))
    return NULL;
  const char *system = "libfuse.so.2";
  void *library = dlopen(system, RTLD_NOW | RTLD_NOLOAD | RTLD_NODELETE);
  if (library == NULL) library = dlopen(path, RTLD_NOW | RTLD_NODELETE);
  if (library == NULL) library = dlopen(system, RTLD_NOW | RTLD_NODELETE);
  if (library == NULL) return refuse(env, dlerror());
  const struct {
    const char *name, *version;
    void *to;
  } symbols[] = {
      {"fuse_kern_chan_new", "FUSE_2.4", &libfuse.kern_chan_new},
      {"fuse_new", "FUSE_2.6", &libfuse.new},
      {"fuse_get_context", "FUSE_2.8", &libfuse.get_context},
      {"fuse_get_session", "FUSE_2.6", &libfuse.get_session},
      {"fuse_session_next_chan", "FUSE_2.4", &libfuse.next_chan},
      {"fuse_chan_bufsize", "FUSE_2.4", &libfuse.chan_bufsize},
      {"fuse_chan_fd", "FUSE_2.4", &libfuse.chan_fd},
      {"fuse_chan_recv", "FUSE_2.6", &libfuse.chan_recv},
      {"fuse_session_process", "FUSE_2.4", &libfuse.session_process},
  };
  for (size_t i = 0; i < sizeof symbols / sizeof *symbols; i++) {
#ifdef __GLIBC__
    void *found = dlvsym(library, symbols[i].name, symbols[i].version);
#else
    void *found = dlsym(library, symbols[i].name);
#endif
    if (found == NULL) return refuse(env, dlerror());
    memcpy(symbols[i].to, &found, sizeof found);
  }
  if (self_handle(RTLD_GLOBAL) == NULL) return refuse(env, dlerror());
  return NULL;
}

/* fuse_native_bound(): whether fuse-native's calls of libfuse come here. */
static napi_value fuse_native_bound(napi_env env, napi_callback_info info) {
  (void)info;
  return thinfs_boolean(env, is_bound());
}

/*
 * fuse_native_prepare(fd, callback): fuse-native's next mount is served on a duplicate of `fd`.
 * Calls back for each fallocate, with a number to answer it by, the handle, mode, offset and
 * length; and once when nothing can come any more, with -1 and the errno, 0 when the file system
 * was unmounted.
 */
static napi_value fuse_native_prepare(napi_env env, napi_callback_info info) {
  napi_value arguments[2], name;
  int fd;
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_int(env, arguments[0], &fd)) return NULL;
  if (!is_bound()) return refuse(env, "the shim is not bound");
  if (to_javascript != NULL) return refuse(env, "a process serves one mount");
  int flags = fcntl(fd, F_GETFL);
  int ours = flags < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 0);
  /* libfuse's threads sleep in read(2). */
  if (ours < 0 || fcntl(ours, F_SETFL, flags & ~O_NONBLOCK) != 0)
    return thinfs_throw(env, errno, "fcntl");
  if (napi_create_string_utf8(env, "fuse-native", NAPI_AUTO_LENGTH, &name) != napi_ok ||
      napi_create_threadsafe_function(env, arguments[1], NULL, name, 0, 1, NULL, NULL, NULL, deliver,
                                      &to_javascript) != napi_ok)
    return refuse(env, "no threadsafe function");
  mount_fd = ours;
  return NULL;
}

/* fuse_native_answer(id, result): a fallocate; false when nobody waits for it (any more). */
static napi_value fuse_native_answer(napi_env env, napi_callback_info info) {
  napi_value arguments[2];
  int64_t id;
  int result;
  if (!thinfs_arguments(env, info, 2, arguments) || !thinfs_integer(env, arguments[0], &id) ||
      !thinfs_int(env, arguments[1], &result))
    return NULL;
  if (id < 0) return thinfs_boolean(env, false);
  int i = (int)(id % WORKERS);
  pthread_mutex_lock(&calls_mutex);
  bool waits = calls[i].waits && calls[i].number == (uint32_t)(id / WORKERS);
  if (waits) {
    calls[i].waits = false;
    calls[i].result = result;
  }
  pthread_mutex_unlock(&calls_mutex);
  if (waits) sem_post(&calls[i].answered);
  return thinfs_boolean(env, waits);
}

/*
 * fuse_native_creator(): user and group id of the request to create a file that is being handled.
 */
static napi_value fuse_native_creator(napi_env env, napi_callback_info info) {
  napi_value both;
  (void)info;
  if (napi_create_array_with_length(env, 2, &both) != napi_ok) return NULL;
  napi_set_element(env, both, 0, thinfs_number(env, creator_uid));
  napi_set_element(env, both, 1, thinfs_number(env, creator_gid));
  return both;
}

/* fuse_native_agreed(): what INIT settled, and whether fuse-native mounted through the shim. */
static napi_value fuse_native_agreed(napi_env env, napi_callback_info info) {
  napi_value object;
  (void)info;
  if (napi_create_object(env, &object) != napi_ok) return NULL;
  bool through = atomic_load(&nr_mounts) == 1 && atomic_load(&nr_news) == 1 &&
                 atomic_load(&nr_loops) == 1;
  napi_set_named_property(env, object, "bound", thinfs_boolean(env, through));
  napi_set_named_property(env, object, "minor", thinfs_number(env, agreed.minor));
  napi_set_named_property(env, object, "flags", thinfs_number(env, agreed.want));
  napi_set_named_property(env, object, "maxReadahead", thinfs_number(env, agreed.max_readahead));
  napi_set_named_property(env, object, "maxWrite", thinfs_number(env, agreed.max_write));
  return object;
}

bool thinfs_fuse_native_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"fuse_native_bind", fuse_native_bind},       {"fuse_native_bound", fuse_native_bound},
      {"fuse_native_prepare", fuse_native_prepare}, {"fuse_native_answer", fuse_native_answer},
      {"fuse_native_creator", fuse_native_creator}, {"fuse_native_agreed", fuse_native_agreed},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
