/*
 * limit-uring: the least that a single-threaded server can do whose requests come through an
 * io_uring, as the mark to measure by.
 *
 *   limit-uring MOUNTPOINT FILE [SPIN]
 *
 * serves FILE as MOUNTPOINT/volume until it is unmounted, and looks for the next request for SPIN
 * microseconds before it sleeps. Needs Linux 6.14 with fuse.enable_uring on.
 *
 * A request is one pread(2) or pwrite(2); all that wait are answered, and the next ones asked for,
 * by one io_uring_enter(2). What little Debian 12's headers lack is declared here.
 */
#include "limit.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

enum {
  /* Requests of one CPU at a time. */
  DEPTH = 64,
  SLOT = PAGE + MAX_IO,
  REGISTER = 1,
  COMMIT_AND_FETCH = 2,
  OVER_IO_URING = 1 << (41 - 32),
  /* Bytes moved after which what was answered is sent, though the batch has not ended. */
  ENOUGH = 256 * 1024,
};

/* Where the kernel puts a request, and takes the reply from. The payload is in the pages behind. */
struct slot {
  union {
    struct fuse_in_header in;
    struct fuse_out_header out;
    char in_out[128];
  };
  char op_in[128];
  uint64_t flags, commit_id;
  uint32_t payload_size, padding;
  uint64_t reserved;
  char rest[PAGE - 288];
  char payload[MAX_IO];
};

struct command {
  uint64_t flags, commit_id;
  uint16_t queue;
};

static int ring;
static struct slot *slots;
static struct iovec (*iovecs)[2];
static uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail, sq_mask, cq_mask, tail;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static size_t kept;

static void push(uint32_t index, int operation, uint64_t commit_id) {
  struct io_uring_sqe *sqe = &sqes[2 * (tail++ & sq_mask)]; /* Of 128 bytes. */
  memset(sqe, 0, 2 * sizeof *sqe);
  sqe->opcode = IORING_OP_URING_CMD;
  sqe->fd = fuse;
  sqe->cmd_op = operation;
  sqe->user_data = index;
  if (operation == REGISTER) {
    sqe->addr = (uintptr_t)iovecs[index];
    sqe->len = 2;
  }
  struct command *command = (void *)((char *)sqe + 48);
  command->commit_id = commit_id;
  command->queue = index / DEPTH;
}

static void enter(uint32_t wait) {
  __atomic_store_n(sq_tail, tail, __ATOMIC_RELEASE);
  uint32_t submit = tail - __atomic_load_n(sq_head, __ATOMIC_ACQUIRE);
  kept = 0;
  if (syscall(SYS_io_uring_enter, ring, submit, wait, IORING_ENTER_GETEVENTS, NULL, 0) < 0 &&
      errno != EINTR)
    err(1, "io_uring_enter");
}

static void answer(uint32_t index, int size) {
  struct slot *slot = &slots[index];
  kept += slot->payload_size + (size < 0 ? 0 : size);
  uint64_t unique = slot->in.unique;
  slot->out.len = sizeof slot->out + (size < 0 ? 0 : size);
  slot->out.error = size < 0 ? size : 0;
  slot->out.unique = unique;
  slot->payload_size = size < 0 ? 0 : size;
  push(index, COMMIT_AND_FETCH, slot->commit_id);
  if (kept >= ENOUGH) enter(0);
}

static uint32_t completed(void) {
  return __atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) - *cq_head;
}

/* Sends the answers; the next requests are looked for `spin` nanoseconds, then waited for. */
static void next(int64_t spin) {
  if (spin == 0) {
    enter(1);
    return;
  }
  enter(0);
  for (int64_t deadline = now_ns() + spin; completed() == 0;) {
    /* The flag may be up without work, and stay so. */
    if (__atomic_load_n(sq_flags, __ATOMIC_ACQUIRE) & IORING_SQ_TASKRUN) enter(0);
    if (completed() == 0 && now_ns() >= deadline) enter(1);
  }
}

static void serve(int64_t spin) {
  for (;;) {
    next(spin);
    while (completed() > 0) {
      struct io_uring_cqe *cqe = &cqes[*cq_head & cq_mask];
      uint32_t index = cqe->user_data;
      int result = cqe->res;
      __atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
      if (result == -ENOTCONN) return; /* Unmounted. */
      if (result < 0) {
        errno = -result;
        err(1, "FUSE over io_uring");
      }
      struct slot *slot = &slots[index];
      answer(index, handle(&slot->in, slot->op_in, slot->payload, slot->payload));
    }
  }
}

static void make_ring(uint32_t entries) {
  struct io_uring_params params = {
      .flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG,
  };
  ring = syscall(SYS_io_uring_setup, entries, &params);
  if (ring < 0) err(1, "io_uring_setup");
  size_t size = params.cq_off.cqes + params.cq_entries * sizeof *cqes;
  size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
  int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
  char *rings = mmap(NULL, size > sq_size ? size : sq_size, protection, flags, ring,
                     IORING_OFF_SQ_RING);
  sqes = mmap(NULL, params.sq_entries * 128, protection, flags, ring, IORING_OFF_SQES);
  if (rings == MAP_FAILED || sqes == MAP_FAILED) err(1, "mmap");
  sq_head = (void *)(rings + params.sq_off.head);
  sq_tail = (void *)(rings + params.sq_off.tail);
  sq_flags = (void *)(rings + params.sq_off.flags);
  cq_head = (void *)(rings + params.cq_off.head);
  cq_tail = (void *)(rings + params.cq_off.tail);
  cqes = (void *)(rings + params.cq_off.cqes);
  sq_mask = params.sq_entries - 1;
  cq_mask = params.cq_entries - 1;
  uint32_t *array = (void *)(rings + params.sq_off.array);
  for (uint32_t i = 0; i < params.sq_entries; i++) array[i] = i;
}

/* One queue for each CPU that could ever be. */
static uint32_t nr_queues(void) {
  uint32_t last = 0;
  FILE *possible = fopen("/sys/devices/system/cpu/possible", "r");
  if (possible == NULL) err(1, "/sys/devices/system/cpu/possible");
  while (fscanf(possible, "%*[-,]") >= 0 && fscanf(possible, "%u", &last) == 1)
    continue;
  fclose(possible);
  return last + 1;
}

int main(int argc, char **argv) {
  int64_t spin = parse_spin(argc, argv);
  mount_volume("limit-uring", argv[1], argv[2]);
  if (agree(OVER_IO_URING) == 0) errx(1, "the kernel offers no FUSE over io_uring");
  uint32_t count = nr_queues() * DEPTH;
  make_ring(count);
  slots = mmap(NULL, (size_t)count * SLOT, PROT_READ | PROT_WRITE,
               MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  iovecs = calloc(count, sizeof *iovecs);
  if (slots == MAP_FAILED || iovecs == NULL) err(1, "mmap");
  for (uint32_t i = 0; i < count; i++) {
    iovecs[i][0] = (struct iovec){.iov_base = &slots[i], .iov_len = 288};
    iovecs[i][1] = (struct iovec){.iov_base = slots[i].payload, .iov_len = MAX_IO};
    push(i, REGISTER, 0);
  }
  serve(spin);
  return 0;
}
