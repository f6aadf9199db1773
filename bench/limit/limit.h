/*
 * What the limit servers have in common: they mount, agree with the kernel on what it sends, and
 * answer each request out of the file, which is shown as MOUNTPOINT/volume. How requests come and
 * replies go is each server's own.
 *
 * Each is one translation unit, so that the compiler puts handle() into its loop. Flags and limits
 * of the connection are those of src/fuse/init.ts, so that the kernel sends all servers the same
 * requests.
 */
#ifndef THINFS_LIMIT_H
#define THINFS_LIMIT_H

#include <err.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <time.h>
#include <unistd.h>

enum {
  MAX_IO = 1 << 20,
  PAGE = 4096,
  FILE_ID = FUSE_ROOT_ID + 1,
  /* The newest minor version of the protocol that is spoken. */
  MINOR = 45,
  /* What handle() returns when the kernel expects no reply. It sends these by /dev/fuse only. */
  NO_REPLY = -1000,
};

/* The descriptors of the file and of /dev/fuse. */
static int backing, fuse;

/* Checks the arguments. Returns for how many nanoseconds to look for a request before sleeping. */
static int64_t parse_spin(int argc, char **argv) {
  if (argc != 3 && argc != 4) errx(2, "usage: MOUNTPOINT FILE [SPIN]");
  return argc == 4 ? atoi(argv[3]) * INT64_C(1000) : 0;
}

/* Opens the file and mounts. `name` is the server's in the mount table. */
static void mount_volume(const char *name, const char *mount_point, const char *file) {
  char type[32], options[64];
  backing = open(file, O_RDWR | O_CLOEXEC);
  if (backing < 0) err(1, "%s", file);
  fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
  if (fuse < 0) err(1, "/dev/fuse");
  snprintf(type, sizeof type, "fuse.%s", name);
  snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
  if (mount(name, mount_point, type, MS_NOSUID | MS_NODEV, options) < 0) err(1, "%s", mount_point);
}

/* Answers INIT, which comes by /dev/fuse and first. Returns what the kernel offers of `flags2`. */
static uint32_t agree(uint32_t flags2) {
  static const uint32_t flags = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |
                                FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2 |
                                FUSE_INIT_EXT;
  union {
    struct {
      struct fuse_in_header head;
      struct fuse_init_in in;
    };
    char least[FUSE_MIN_READ_BUFFER];
  } request;
  if (read(fuse, &request, sizeof request) < 0) err(1, "read /dev/fuse");
  const struct fuse_init_in *in = &request.in;
  struct {
    struct fuse_out_header head;
    struct fuse_init_out out;
  } reply = {
      .head = {.len = sizeof reply, .unique = request.head.unique},
      .out =
          {
              .major = FUSE_KERNEL_VERSION,
              .minor = in->minor < MINOR ? in->minor : MINOR,
              .max_readahead = in->max_readahead,
              .flags = in->flags & flags,
              .max_background = 512,
              .congestion_threshold = 384,
              .max_write = MAX_IO,
              .time_gran = 1,
              .max_pages = MAX_IO / PAGE,
              .flags2 = in->flags2 & flags2,
          },
  };
  if (write(fuse, &reply, sizeof reply) < 0) err(1, "write /dev/fuse");
  return reply.out.flags2;
}

static int64_t now_ns(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

static int fill_attr(struct fuse_attr *attr, uint64_t id) {
  struct stat st;
  if (fstat(backing, &st) < 0) return -errno;
  *attr = (struct fuse_attr){
      .ino = id,
      .mode = id == FILE_ID ? S_IFREG | 0600 : S_IFDIR | 0700,
      .nlink = 1,
      .size = id == FILE_ID ? st.st_size : 0,
      .blocks = id == FILE_ID ? st.st_blocks : 0,
      .blksize = PAGE,
  };
  return 0;
}

/*
 * One function for each operation: fills in the body of the reply at `body`, and returns its bytes
 * or a negative errno. A name or data to write may be at `body` too.
 */

static int do_lookup(const char *name, void *body) {
  if (strcmp(name, "volume") != 0) return -ENOENT;
  struct fuse_entry_out *out = memset(body, 0, sizeof *out);
  out->nodeid = FILE_ID;
  int error = fill_attr(&out->attr, FILE_ID);
  return error ? error : (int)sizeof *out;
}

static int do_getattr(uint64_t id, void *body) {
  struct fuse_attr_out *out = memset(body, 0, sizeof *out);
  int error = fill_attr(&out->attr, id);
  return error ? error : (int)sizeof *out;
}

static int do_open(void *body) {
  struct fuse_open_out *out = memset(body, 0, sizeof *out);
  out->open_flags = FOPEN_KEEP_CACHE;
  return sizeof *out;
}

static int do_read(const struct fuse_read_in *in, void *body) {
  ssize_t size = pread(backing, body, in->size, in->offset);
  return size < 0 ? -errno : (int)size;
}

static int do_write(const struct fuse_write_in *in, const char *data, void *body) {
  ssize_t size = pwrite(backing, data, in->size, in->offset);
  if (size != (ssize_t)in->size) return size < 0 ? -errno : -EIO;
  struct fuse_write_out *out = memset(body, 0, sizeof *out);
  out->size = in->size;
  return sizeof *out;
}

static int do_fsync(const struct fuse_fsync_in *in) {
  bool data_only = in->fsync_flags & FUSE_FSYNC_FDATASYNC;
  int failed = data_only ? fdatasync(backing) : fsync(backing);
  return failed ? -errno : 0;
}

static int do_statfs(void *body) {
  struct statvfs st;
  if (fstatvfs(backing, &st) < 0) return -errno;
  struct fuse_statfs_out *out = memset(body, 0, sizeof *out);
  out->st = (struct fuse_kstatfs){
      .blocks = st.f_blocks,
      .bfree = st.f_bfree,
      .bavail = st.f_bavail,
      .bsize = st.f_bsize,
      .frsize = st.f_frsize,
      .namelen = 255,
  };
  return sizeof *out;
}

/*
 * Does what a request asks for, and returns what its function does, or NO_REPLY. `in` is the
 * operation's structure, `payload` the name or the data to write.
 */
static inline int handle(const struct fuse_in_header *head, const void *in, const char *payload,
                         void *body) {
  switch (head->opcode) {
  case FUSE_READ:
    return do_read(in, body);
  case FUSE_WRITE:
    return do_write(in, payload, body);
  case FUSE_LOOKUP:
    return do_lookup(payload, body);
  case FUSE_GETATTR:
    return do_getattr(head->nodeid, body);
  case FUSE_OPEN:
    return do_open(body);
  case FUSE_STATFS:
    return do_statfs(body);
  case FUSE_FSYNC:
    return do_fsync(in);
  case FUSE_FLUSH:
  case FUSE_RELEASE:
  case FUSE_DESTROY:
    return 0;
  case FUSE_FORGET:
  case FUSE_BATCH_FORGET:
  case FUSE_INTERRUPT:
    return NO_REPLY;
  default:
    return -ENOSYS;
  }
}

#endif
