/*
 * librados and librbd as far as thinfs uses them, for tests without a cluster. The cluster is the
 * folder that holds ceph.conf:
 *
 *   POOL.IMAGE         the bytes of an image
 *   POOL.IMAGE.lock    the address of the client that has its lock
 *   blocklist          addresses with seconds, a line each: every call of such a client is ESHUTDOWN
 *   calls              every call that was made, a line each
 *   faults             "PERCENT ERRNO": how many requests fail, and how; -1 for ERRNO: they never end
 *
 * Requests end on threads of its own, in any order. Objects have 64 KiB: those that hold zeros only
 * are none.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { OBJECT = 64 << 10, THREADS = 4 };
/* No request's result. */
#define NEVER SSIZE_MAX

typedef struct {
  char folder[4096], address[64];
  char osd_limit[16], mon_limit[16];
} client;

typedef struct {
  client *of;
  char pool[256];
} pool;

typedef struct {
  client *of;
  char name[512];
  int fd;
  int read_only;
  uint64_t size;
  void (*changed)(void *);
  void *data;
} image;

typedef struct completion {
  struct completion *next;
  void (*callback)(struct completion *, void *);
  void *data;
  ssize_t result;
  image *of;
  int kind;
  uint64_t offset;
  size_t length;
  char *bytes;
} completion;

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t waits = PTHREAD_COND_INITIALIZER;
static completion *queue;
static int nr_threads;
static atomic_int nr_clients;

static int open_in(client *of, const char *name, int flags) {
  char path[5000];
  snprintf(path, sizeof path, "%s/%s", of->folder, name);
  return open(path, flags | O_CLOEXEC, 0600);
}

static void note(client *of, const char *format, ...) {
  char line[600];
  va_list list;
  va_start(list, format);
  int length = vsnprintf(line, sizeof line - 1, format, list);
  va_end(list);
  line[length] = '\n';
  int fd = open_in(of, "calls", O_WRONLY | O_CREAT | O_APPEND);
  if (fd >= 0) (void)!write(fd, line, length + 1);
  close(fd);
}

static void content(client *of, const char *name, char *text, size_t size) {
  int fd = open_in(of, name, O_RDONLY);
  ssize_t length = fd < 0 ? 0 : read(fd, text, size - 1);
  text[length < 0 ? 0 : length] = '\0';
  if (fd >= 0) close(fd);
}

static int refused(client *of) {
  char list[4096], line[80];
  content(of, "blocklist", list, sizeof list);
  snprintf(line, sizeof line, "%s ", of->address);
  return strstr(list, line) == NULL ? 0 : -ESHUTDOWN;
}

int rados_create2(void **made, const char *name, const char *user, uint64_t flags) {
  client *self = calloc(1, sizeof *self);
  (void)name, (void)flags;
  snprintf(self->address, sizeof self->address, "10.0.0.1:0/%d", 1000 + atomic_fetch_add(&nr_clients, 1));
  strcpy(self->osd_limit, "0");
  strcpy(self->mon_limit, "0");
  *made = self;
  return strncmp(user, "client.", 7) == 0 ? 0 : -EINVAL;
}

int rados_conf_read_file(void *data, const char *path) {
  client *self = data;
  if (access(path, R_OK) != 0) return -errno;
  snprintf(self->folder, sizeof self->folder, "%.*s", (int)(strrchr(path, '/') - path), path);
  char text[256];
  content(self, "ceph.conf", text, sizeof text);
  sscanf(text, "rados_osd_op_timeout = %15s", self->osd_limit);
  return 0;
}

int rados_conf_get(void *data, const char *name, char *value, size_t size) {
  client *self = data;
  int of_osd = strcmp(name, "rados_osd_op_timeout") == 0;
  snprintf(value, size, "%s", of_osd ? self->osd_limit : self->mon_limit);
  return 0;
}

int rados_conf_set(void *data, const char *name, const char *value) {
  note(data, "set %s %s", name, value);
  return strcmp(name, "rbd_disable_zero_copy_writes") == 0 ? -ENOENT : 0;
}

int rados_connect(void *data) { return refused(data); }

void rados_shutdown(void *data) {
  note(data, "shutdown");
  free(data);
}

int rados_blocklist_add(void *data, char *address, uint32_t seconds) {
  client *self = data;
  char line[128];
  int length = snprintf(line, sizeof line, "%s %u\n", address, seconds);
  int fd = open_in(self, "blocklist", O_WRONLY | O_CREAT | O_APPEND);
  (void)!write(fd, line, length);
  close(fd);
  note(self, "blocklist %s %u", address, seconds);
  return 0;
}

int rados_ioctx_create(void *data, const char *name, void **made) {
  pool *self = calloc(1, sizeof *self);
  self->of = data;
  snprintf(self->pool, sizeof self->pool, "%s", name);
  *made = self;
  return 0;
}

void rados_ioctx_set_namespace(void *data, const char *name) {
  if (name[0] != '\0') note(((pool *)data)->of, "namespace %s", name);
}

void rados_ioctx_destroy(void *data) { free(data); }

static void *serve(void *ignored);

static int open_image(void *data, const char *name, void **made, int flags) {
  pool *in = data;
  image *self = calloc(1, sizeof *self);
  struct stat stat;
  self->of = in->of;
  snprintf(self->name, sizeof self->name, "%.200s.%.200s", in->pool, name);
  self->fd = open_in(in->of, self->name, flags);
  if (self->fd < 0) {
    free(self);
    return -errno;
  }
  fstat(self->fd, &stat);
  self->size = stat.st_size;
  self->read_only = flags == O_RDONLY;
  *made = self;
  while (nr_threads < THREADS) {
    pthread_t thread;
    nr_threads++;
    pthread_create(&thread, NULL, serve, NULL);
    pthread_detach(thread);
  }
  return 0;
}

int rbd_open(void *io, const char *name, void **made, const char *snapshot) {
  (void)snapshot;
  return open_image(io, name, made, O_RDWR);
}

int rbd_open_read_only(void *io, const char *name, void **made, const char *snapshot) {
  (void)snapshot;
  return open_image(io, name, made, O_RDONLY);
}

static void lock_name(image *self, char *name, size_t size) {
  snprintf(name, size, "%s.lock", self->name);
}

static void lock_owner(image *self, char *owner, size_t size) {
  char name[600];
  lock_name(self, name, sizeof name);
  content(self->of, name, owner, size);
}

static void lock_remove(image *self) {
  char path[5000];
  snprintf(path, sizeof path, "%s/%s.lock", self->of->folder, self->name);
  unlink(path);
}

int rbd_lock_release(void *data) {
  image *self = data;
  char owner[64];
  lock_owner(self, owner, sizeof owner);
  note(self->of, "unlock %s", self->name);
  if (strcmp(owner, self->of->address) == 0) lock_remove(self);
  return 0;
}

int rbd_close(void *data) {
  image *self = data;
  rbd_lock_release(self);
  note(self->of, "close %s", self->name);
  close(self->fd);
  free(self);
  return 0;
}

int rbd_get_size(void *data, uint64_t *size) {
  struct stat stat;
  fstat(((image *)data)->fd, &stat);
  *size = stat.st_size;
  return refused(((image *)data)->of);
}

int rbd_get_features(void *data, uint64_t *features) {
  *features = strstr(((image *)data)->name, ".plain") == NULL ? 61 : 1;
  return 0;
}

int rbd_get_flags(void *data, uint64_t *flags) {
  *flags = strstr(((image *)data)->name, ".unmapped") == NULL ? 0 : 3;
  return 0;
}

int rbd_update_watch(void *data, uint64_t *handle, void (*changed)(void *), void *with) {
  image *self = data;
  *handle = 1;
  pthread_mutex_lock(&mutex);
  self->changed = changed;
  self->data = with;
  pthread_mutex_unlock(&mutex);
  return 0;
}

int rbd_update_unwatch(void *data, uint64_t handle) {
  (void)handle;
  pthread_mutex_lock(&mutex);
  ((image *)data)->changed = NULL;
  pthread_mutex_unlock(&mutex);
  return 0;
}

int rbd_diff_iterate2(void *data, const char *from, uint64_t offset, uint64_t length, uint8_t parent,
                      uint8_t whole, int (*found)(uint64_t, size_t, int, void *), void *with) {
  static const char zeros[OBJECT];
  image *self = data;
  char object[OBJECT];
  note(self->of, "diff %s from %s parent %d whole %d", self->name, from == NULL ? "-" : from, parent, whole);
  for (uint64_t at = offset / OBJECT * OBJECT; at < offset + length; at += OBJECT) {
    ssize_t got = pread(self->fd, object, OBJECT, at);
    if (got <= 0 || memcmp(object, zeros, got) == 0) continue;
    int result = found(at, got, 1, with);
    if (result < 0) return result;
  }
  return 0;
}

int rbd_lock_acquire(void *data, int mode) {
  image *self = data;
  char owner[64], name[600];
  if (refused(self->of)) return -ESHUTDOWN;
  lock_owner(self, owner, sizeof owner);
  note(self->of, "lock %s mode %d owner %s", self->name, mode, owner);
  if (strcmp(owner, self->of->address) == 0) return 0;
  if (owner[0] != '\0') return -EROFS;
  lock_name(self, name, sizeof name);
  int fd = open_in(self->of, name, O_WRONLY | O_CREAT | O_EXCL);
  if (fd < 0) return -EROFS;
  (void)!write(fd, self->of->address, strlen(self->of->address));
  close(fd);
  return 0;
}

int rbd_lock_get_owners(void *data, int *mode, char **owners, size_t *count) {
  char owner[64];
  if (((image *)data)->read_only) return -EINVAL;
  if (refused(((image *)data)->of)) return -ESHUTDOWN;
  lock_owner(data, owner, sizeof owner);
  if (owner[0] == '\0') return -ENOENT;
  *mode = 0;
  *count = 1;
  owners[0] = strdup(owner);
  return 0;
}

void rbd_lock_get_owners_cleanup(char **owners, size_t count) {
  for (size_t i = 0; i < count; i++) free(owners[i]);
}

int rbd_lock_break(void *data, int mode, const char *address) {
  image *self = data;
  char owner[64], copy[64];
  lock_owner(self, owner, sizeof owner);
  note(self->of, "break %s mode %d of %s", self->name, mode, address);
  if (owner[0] == '\0') return -ENOENT;
  if (strcmp(owner, address) != 0) return -EBUSY;
  snprintf(copy, sizeof copy, "%s", address);
  rados_blocklist_add(self->of, copy, 3600);
  lock_remove(self);
  return 0;
}

/* --- requests --- */

static ssize_t carry_out(completion *one) {
  static unsigned seed = 1;
  image *self = one->of;
  char text[64];
  int percent = 0, error = 0;
  struct stat stat;
  if (refused(self->of)) return -ESHUTDOWN;
  content(self->of, "faults", text, sizeof text);
  if (sscanf(text, "%d %d", &percent, &error) == 2 && (int)(rand_r(&seed) % 100) < percent)
    return error < 0 ? NEVER : -error;
  fstat(self->fd, &stat);
  if (one->offset + one->length > (uint64_t)stat.st_size) return -EINVAL;
  switch (one->kind) {
    case 'r': {
      ssize_t got = pread(self->fd, one->bytes, one->length, one->offset);
      return got < 0 ? -errno : got;
    }
    case 'w':
      return pwrite(self->fd, one->bytes, one->length, one->offset) < 0 ? -errno : 0;
    case 'z': {
      int mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE;
      return fallocate(self->fd, mode, one->offset, one->length) < 0 ? -errno : 0;
    }
    default:
      return fdatasync(self->fd) < 0 ? -errno : 0;
  }
}

static void *serve(void *ignored) {
  (void)ignored;
  for (;;) {
    pthread_mutex_lock(&mutex);
    while (queue == NULL) pthread_cond_wait(&waits, &mutex);
    completion *one = queue;
    queue = one->next;
    pthread_mutex_unlock(&mutex);
    ssize_t result = carry_out(one);
    if (result == NEVER) continue;
    one->result = result;
    image *self = one->of;
    struct stat stat;
    fstat(self->fd, &stat);
    pthread_mutex_lock(&mutex);
    if (self->changed != NULL && (uint64_t)stat.st_size != self->size) {
      self->size = stat.st_size;
      self->changed(self->data);
    }
    pthread_mutex_unlock(&mutex);
    one->callback(one, one->data);
  }
  return NULL;
}

int rbd_aio_create_completion(void *data, void (*callback)(completion *, void *), void **made) {
  completion *self = calloc(1, sizeof *self);
  self->callback = callback;
  self->data = data;
  *made = self;
  return 0;
}

ssize_t rbd_aio_get_return_value(void *one) { return ((completion *)one)->result; }

void rbd_aio_release(void *one) { free(one); }

static int begin(image *of, int kind, uint64_t offset, size_t length, char *bytes, completion *one) {
  one->of = of;
  one->kind = kind;
  one->offset = offset;
  one->length = length;
  one->bytes = bytes;
  if (kind == 'z') note(of->of, "zero %s %llu %zu", of->name, (unsigned long long)offset, length);
  pthread_mutex_lock(&mutex);
  /* The last one is the first that is carried out. */
  one->next = queue;
  queue = one;
  pthread_cond_signal(&waits);
  pthread_mutex_unlock(&mutex);
  return 0;
}

int rbd_aio_read(void *of, uint64_t offset, size_t length, char *into, void *one) {
  return begin(of, 'r', offset, length, into, one);
}

int rbd_aio_write(void *of, uint64_t offset, size_t length, const char *from, void *one) {
  return begin(of, 'w', offset, length, (char *)from, one);
}

int rbd_aio_write_zeroes(void *of, uint64_t offset, size_t length, void *one, int zero_flags, int flags) {
  return zero_flags != 0 || flags != 0 ? -EINVAL : begin(of, 'z', offset, length, NULL, one);
}

int rbd_aio_flush(void *of, void *one) { return begin(of, 'f', 0, 0, NULL, one); }

int rbd_discard(void *of, uint64_t offset, uint64_t length) {
  note(((image *)of)->of, "discard %llu %llu", (unsigned long long)offset, (unsigned long long)length);
  return -EINVAL;
}
