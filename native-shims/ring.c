/* io_uring by its system calls: making a ring, entering it, and the memory that goes with it. */
#define _GNU_SOURCE
#include "napi.h"

#include <errno.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { RING_BIG_ENTRIES = 1 };
enum { SQES, CQES, ARENA, NR_BUFFERS };

/*
 * JavaScript holds a ring and the three ArrayBuffers onto its memory, each for as long as it likes:
 * `holders` counts them, and the last one to be collected frees everything that ring_close() has
 * not.
 */
typedef struct {
  int fd, event, holders;
  bool open;
  char *rings, *sqes, *arena;
  size_t rings_size, sqes_size, arena_size;
  uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail, *cq_flags;
  uint32_t sq_entries, cq_entries;
  char *cqes;
  napi_ref buffers[NR_BUFFERS];
} ring;

static int enter(ring *self, uint32_t submit, uint32_t wait) {
  return (int)syscall(SYS_io_uring_enter, self->fd, submit, wait, IORING_ENTER_GETEVENTS, NULL, 0);
}

/* Entries that the kernel has taken and not completed; each completes exactly once. */
static uint32_t under_way(const ring *self) {
  return __atomic_load_n(self->sq_head, __ATOMIC_ACQUIRE) -
         __atomic_load_n(self->cq_tail, __ATOMIC_ACQUIRE);
}

static void ring_end(ring *self, bool arena_is_free) {
  if (!self->open) return;
  self->open = false;
  close(self->fd);
  if (self->event >= 0) close(self->event);
  if (self->sqes != NULL) munmap(self->sqes, self->sqes_size);
  if (self->rings != NULL) munmap(self->rings, self->rings_size);
  if (self->arena != NULL && arena_is_free) munmap(self->arena, self->arena_size);
}

static void ring_collected(napi_env env, void *data, void *hint) {
  ring *self = hint;
  (void)data;
  if (--self->holders > 0) return;
  /*
   * Nobody waited for what is under way: it may still write to the arena, whose addresses stay
   * taken.
   */
  if (self->open) ring_end(self, self->rings == NULL || under_way(self) == 0);
  for (int i = 0; i < NR_BUFFERS; i++)
    if (self->buffers[i] != NULL) napi_delete_reference(env, self->buffers[i]);
  free(self);
}

static void *map(int fd, size_t size, off_t offset) {
  void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, offset);
  return at == MAP_FAILED ? NULL : at;
}

/* Makes the ring and maps it. Returns 0 or an errno. */
static int ring_make(ring *self, uint32_t entries, int flags) {
  /*
   * The flags that spare interruptions came with Linux 6.1; without them all goes on, a little
   * slower.
   */
  static const uint32_t wanted[] = {
      IORING_SETUP_SUBMIT_ALL | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
          IORING_SETUP_TASKRUN_FLAG,
      0,
  };
  struct io_uring_params params;
  self->fd = self->event = -1;
  for (size_t i = 0; i < sizeof wanted / sizeof *wanted && self->fd < 0; i++) {
    memset(&params, 0, sizeof params);
    params.flags = wanted[i] | (flags & RING_BIG_ENTRIES ? IORING_SETUP_SQE128 : 0);
    self->fd = (int)syscall(SYS_io_uring_setup, entries, &params);
    if (self->fd < 0 && errno != EINVAL) break;
  }
  if (self->fd < 0) return errno;
  self->open = true;
  /* The ring can be polled itself, but who polls it is not told of deferred task work. */
  self->event = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (self->event < 0 ||
      syscall(SYS_io_uring_register, self->fd, IORING_REGISTER_EVENTFD, &self->event, 1) < 0)
    return errno;
  if (!(params.features & IORING_FEAT_SINGLE_MMAP)) return ENOSYS;
  size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  size_t cq_size = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
  self->rings_size = sq_size > cq_size ? sq_size : cq_size;
  self->sqes_size = params.sq_entries * (flags & RING_BIG_ENTRIES ? 128u : 64u);
  self->rings = map(self->fd, self->rings_size, IORING_OFF_SQ_RING);
  self->sqes = map(self->fd, self->sqes_size, IORING_OFF_SQES);
  if (self->rings == NULL || self->sqes == NULL) return errno;
  self->sq_head = (uint32_t *)(self->rings + params.sq_off.head);
  self->sq_tail = (uint32_t *)(self->rings + params.sq_off.tail);
  self->sq_flags = (uint32_t *)(self->rings + params.sq_off.flags);
  self->cq_head = (uint32_t *)(self->rings + params.cq_off.head);
  self->cq_tail = (uint32_t *)(self->rings + params.cq_off.tail);
  self->cq_flags = (uint32_t *)(self->rings + params.cq_off.flags);
  self->cqes = self->rings + params.cq_off.cqes;
  self->sq_entries = params.sq_entries;
  self->cq_entries = params.cq_entries;
  /* Entries are submitted in the order of their places. */
  uint32_t *array = (uint32_t *)(self->rings + params.sq_off.array);
  for (uint32_t i = 0; i < params.sq_entries; i++) array[i] = i;
  if (self->arena_size > 0) {
    void *arena = mmap(NULL, self->arena_size, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arena == MAP_FAILED) return errno;
    self->arena = arena;
  }
  return 0;
}

/* An ArrayBuffer onto memory of the ring, as a property of `object`. */
static bool ring_show(napi_env env, napi_value object, const char *name, ring *self, int which,
                      void *memory, size_t size) {
  napi_value buffer;
  if (size == 0) {
    void *none;
    return napi_create_arraybuffer(env, 0, &none, &buffer) == napi_ok &&
           napi_set_named_property(env, object, name, buffer) == napi_ok;
  }
  self->holders++;
  if (napi_create_external_arraybuffer(env, memory, size, ring_collected, self, &buffer) !=
      napi_ok) {
    self->holders--;
    return false;
  }
  return napi_create_reference(env, buffer, 0, &self->buffers[which]) == napi_ok &&
         napi_set_named_property(env, object, name, buffer) == napi_ok;
}

static bool set_number(napi_env env, napi_value object, const char *name, double number) {
  return napi_set_named_property(env, object, name, thinfs_number(env, number)) == napi_ok;
}

/*
 * ring_open(entries, flags, arenaSize): a ring, its entries, its completions and `arenaSize` bytes
 * of memory at an address that is known. With flag 1 entries have 128 bytes.
 */
static napi_value ring_open(napi_env env, napi_callback_info info) {
  napi_value arguments[3], object, external;
  int64_t entries, arena_size;
  int flags;
  if (!thinfs_arguments(env, info, 3, arguments) || !thinfs_integer(env, arguments[0], &entries) ||
      !thinfs_int(env, arguments[1], &flags) || !thinfs_integer(env, arguments[2], &arena_size))
    return NULL;
  if (entries <= 0 || entries > UINT16_MAX || arena_size < 0) {
    napi_throw_range_error(env, NULL, "a ring has 1..65535 entries");
    return NULL;
  }
  ring *self = calloc(1, sizeof *self);
  if (self == NULL) return thinfs_throw(env, ENOMEM, "malloc");
  self->arena_size = (size_t)arena_size;
  self->holders = 1;
  int error = ring_make(self, (uint32_t)entries, flags);
  if (error != 0 || napi_create_external(env, self, ring_collected, self, &external) != napi_ok) {
    ring_end(self, true);
    free(self);
    return thinfs_throw(env, error == 0 ? ENOMEM : error, "io_uring_setup");
  }
  if (napi_create_object(env, &object) != napi_ok ||
      napi_set_named_property(env, object, "ring", external) != napi_ok ||
      !set_number(env, object, "fd", self->event) ||
      !set_number(env, object, "sqEntries", self->sq_entries) ||
      !set_number(env, object, "cqEntries", self->cq_entries) ||
      !set_number(env, object, "arenaAddress", (double)(uintptr_t)self->arena) ||
      !ring_show(env, object, "sqes", self, SQES, self->sqes, self->sqes_size) ||
      !ring_show(env, object, "cqes", self, CQES, self->cqes,
                 self->cq_entries * sizeof(struct io_uring_cqe)) ||
      !ring_show(env, object, "arena", self, ARENA, self->arena, self->arena_size))
    return thinfs_throw(env, ENOMEM, "io_uring_setup");
  return object;
}

static ring *ring_argument(napi_env env, napi_value value) {
  void *self;
  if (napi_get_value_external(env, value, &self) != napi_ok) {
    napi_throw_type_error(env, NULL, "a ring is expected");
    return NULL;
  }
  return self;
}

/*
 * ring_enter(ring, sqTail, cqHead, wait, spin): publishes both indices, submits all entries up to
 * `sqTail`, and sleeps until `wait` completions are there. When none is, looks for one for `spin`
 * microseconds. Returns the completions' tail; the ring's descriptor tells of those that come
 * later. Throws what is wrong with the ring, not with an entry.
 */
static napi_value ring_enter(napi_env env, napi_callback_info info) {
  napi_value arguments[5];
  int64_t sq_tail, head, wait, spin;
  ring *self;
  if (!thinfs_arguments(env, info, 5, arguments) ||
      (self = ring_argument(env, arguments[0])) == NULL ||
      !thinfs_integer(env, arguments[1], &sq_tail) || !thinfs_integer(env, arguments[2], &head) ||
      !thinfs_integer(env, arguments[3], &wait) || !thinfs_integer(env, arguments[4], &spin))
    return NULL;
  if (!self->open) return thinfs_throw(env, EBADF, "io_uring_enter");
  uint32_t cq_head = (uint32_t)head, tail;
  __atomic_store_n(self->cq_head, cq_head, __ATOMIC_RELEASE);
  __atomic_store_n(self->sq_tail, (uint32_t)sq_tail, __ATOMIC_RELEASE);
  __atomic_store_n(self->cq_flags, IORING_CQ_EVENTFD_DISABLED, __ATOMIC_SEQ_CST);
  int64_t deadline = 0;
  int error = 0;
  while (error == 0) {
    uint32_t submit = (uint32_t)sq_tail - __atomic_load_n(self->sq_head, __ATOMIC_ACQUIRE);
    tail = __atomic_load_n(self->cq_tail, __ATOMIC_ACQUIRE);
    uint32_t missing = tail - cq_head >= (uint64_t)wait ? 0 : (uint32_t)wait;
    /* EAGAIN: no memory at the moment. */
    if (submit > 0 || missing > 0) {
      if (enter(self, submit, missing) < 0 && errno != EINTR && errno != EAGAIN) error = errno;
      continue;
    }
    /*
     * The kernel runs some 20 pieces of task work in a call and raises the flag again for the rest,
     * for which it makes no event. It may also raise the flag behind work that is done, and then
     * leaves it up. So this thread takes it down before each call: what is up afterwards stands for
     * work.
     */
    if (__atomic_load_n(self->sq_flags, __ATOMIC_SEQ_CST) &
        (IORING_SQ_TASKRUN | IORING_SQ_CQ_OVERFLOW)) {
      __atomic_fetch_and(self->sq_flags, ~IORING_SQ_TASKRUN, __ATOMIC_SEQ_CST);
      if (enter(self, 0, 0) < 0) {
        if (errno != EINTR && errno != EAGAIN) error = errno;
        __atomic_fetch_or(self->sq_flags, IORING_SQ_TASKRUN, __ATOMIC_SEQ_CST);
      }
      if (__atomic_load_n(self->sq_flags, __ATOMIC_SEQ_CST) & IORING_SQ_TASKRUN) continue;
      tail = __atomic_load_n(self->cq_tail, __ATOMIC_ACQUIRE);
    }
    if (tail == cq_head && spin > 0) {
      int64_t now = thinfs_now_ns();
      if (deadline == 0) deadline = now + spin * 1000;
      if (now < deadline) continue;
    }
    /* Once more when events are on again: what came before made none. */
    if (__atomic_exchange_n(self->cq_flags, 0, __ATOMIC_SEQ_CST) == 0) break;
  }
  if (error != 0) return thinfs_throw(env, error, "io_uring_enter");
  return thinfs_number(env, tail);
}

/* ring_signal(ring): makes the ring's descriptor readable. */
static napi_value ring_signal(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ring *self;
  if (!thinfs_arguments(env, info, 1, arguments) ||
      (self = ring_argument(env, arguments[0])) == NULL || !self->open)
    return NULL;
  /* It cannot fail but by being readable already. */
  (void)!eventfd_write(self->event, 1);
  return NULL;
}

/* ring_calm(ring): the ring's descriptor is readable no more, until something completes. */
static napi_value ring_calm(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  eventfd_t count;
  ring *self;
  if (!thinfs_arguments(env, info, 1, arguments) ||
      (self = ring_argument(env, arguments[0])) == NULL || !self->open)
    return NULL;
  (void)!eventfd_read(self->event, &count);
  return NULL;
}

/*
 * ring_close(ring): closes the ring and unmaps its memory; the ArrayBuffers are empty afterwards.
 * Calls that read into memory must have completed. Closed already is no error.
 */
static napi_value ring_close(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  ring *self;
  if (!thinfs_arguments(env, info, 1, arguments) ||
      (self = ring_argument(env, arguments[0])) == NULL || !self->open)
    return NULL;
  for (int i = 0; i < NR_BUFFERS; i++) {
    napi_value buffer = NULL;
    if (self->buffers[i] != NULL &&
        napi_get_reference_value(env, self->buffers[i], &buffer) == napi_ok && buffer != NULL)
      napi_detach_arraybuffer(env, buffer);
  }
  ring_end(self, true);
  return NULL;
}

/* buffer_address(buffer): where the bytes of a Buffer or typed array are. */
static napi_value buffer_address(napi_env env, napi_callback_info info) {
  napi_value arguments[1];
  void *data;
  size_t size;
  if (!thinfs_arguments(env, info, 1, arguments)) return NULL;
  if (napi_get_buffer_info(env, arguments[0], &data, &size) != napi_ok) {
    napi_throw_type_error(env, NULL, "a buffer is expected");
    return NULL;
  }
  return thinfs_number(env, (double)(uintptr_t)data);
}

bool thinfs_ring_exports(napi_env env, napi_value exports) {
  static const thinfs_export functions[] = {
      {"ring_open", ring_open},
      {"ring_enter", ring_enter},
      {"ring_signal", ring_signal},
      {"ring_calm", ring_calm},
      {"ring_close", ring_close},
      {"buffer_address", buffer_address},
  };
  return thinfs_exports(env, exports, functions, sizeof functions / sizeof *functions);
}
