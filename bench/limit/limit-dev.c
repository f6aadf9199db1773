/*
 * limit-dev: the least that a single-threaded server on /dev/fuse can do, as the mark to measure
 * by.
 *
 *   limit-dev MOUNTPOINT FILE [SPIN]
 *
 * serves FILE as MOUNTPOINT/volume until it is unmounted, and looks for the next request for SPIN
 * microseconds before it sleeps.
 *
 * A request is one read(2), one pread(2) or pwrite(2), and one write(2).
 */
#include "limit.h"

#include <poll.h>

static struct {
  struct fuse_in_header head;
  char body[MAX_IO + PAGE - sizeof(struct fuse_in_header)];
} request;

static struct {
  struct fuse_out_header head;
  char body[MAX_IO];
} reply;

/* The next request: looked for `spin` nanoseconds, then waited for. */
static ssize_t next(int64_t spin) {
  for (int64_t deadline = now_ns() + spin;;) {
    ssize_t size = read(fuse, &request, sizeof request);
    if (size >= 0 || errno != EAGAIN) return size;
    if (now_ns() < deadline) continue;
    poll(&(struct pollfd){.fd = fuse, .events = POLLIN}, 1, -1);
  }
}

static void serve(int64_t spin) {
  for (;;) {
    if (next(spin) < 0) {
      if (errno == ENODEV) return; /* Unmounted. */
      /* ENOENT: the caller was interrupted before the request was read. */
      if (errno == EINTR || errno == ENOENT) continue;
      err(1, "read /dev/fuse");
    }
    /* A name is all there is; data follow their structure. */
    size_t skip = request.head.opcode == FUSE_WRITE ? sizeof(struct fuse_write_in) : 0;
    int size = handle(&request.head, request.body, request.body + skip, reply.body);
    if (size == NO_REPLY) continue;
    reply.head.unique = request.head.unique;
    reply.head.error = size < 0 ? size : 0;
    reply.head.len = sizeof reply.head + (size < 0 ? 0 : size);
    if (write(fuse, &reply, reply.head.len) < 0 && errno != ENOENT) err(1, "write /dev/fuse");
  }
}

int main(int argc, char **argv) {
  int64_t spin = parse_spin(argc, argv);
  mount_volume("limit-dev", argv[1], argv[2]);
  agree(0);
  /* Without spinning a read sleeps by itself. */
  if (spin > 0 && fcntl(fuse, F_SETFL, O_NONBLOCK) < 0) err(1, "/dev/fuse");
  serve(spin);
  return 0;
}
