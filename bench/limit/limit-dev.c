/*
 * limit-dev: the least that a single-threaded server on /dev/fuse can do, as the mark to measure by.
 *
 *   limit-dev MOUNTPOINT FILE [SPIN]
 *
 * serves FILE as MOUNTPOINT/volume until it is unmounted, and looks for the next request for SPIN
 * microseconds before it sleeps.
 *
 * A request is one read(2), one pread(2) or pwrite(2), and one write(2). Flags and limits of the
 * connection are those of src/fuse/init.ts, so that the kernel sends both servers the same requests.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <poll.h>
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
    /* What a handler returns when the kernel expects no reply. */
    NO_REPLY = -1000,
};

static const uint32_t FLAGS = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |
                              FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2;

static struct {
    struct fuse_in_header head;
    char body[MAX_IO + PAGE - sizeof(struct fuse_in_header)];
} request;

static struct {
    struct fuse_out_header head;
    char body[MAX_IO];
} reply;

static int backing;

static _Noreturn void die(const char *what) {
    fprintf(stderr, "limit-dev: %s: %s\n", what, strerror(errno));
    exit(1);
}

/* An answer of `size` zeroed bytes to fill in. */
static void *answer(size_t size) { return memset(reply.body, 0, size); }

static int fill_attr(struct fuse_attr *attr, uint64_t id) {
    struct stat st;
    if (fstat(backing, &st) < 0)
        return -errno;
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

/* The handlers return the bytes of the reply's body, or a negative errno. */

static int do_init(const struct fuse_init_in *in) {
    struct fuse_init_out *out = answer(sizeof *out);
    out->major = FUSE_KERNEL_VERSION;
    out->minor = in->minor < FUSE_KERNEL_MINOR_VERSION ? in->minor : FUSE_KERNEL_MINOR_VERSION;
    out->max_readahead = in->max_readahead;
    out->flags = in->flags & FLAGS;
    out->max_background = 512;
    out->congestion_threshold = 384;
    out->max_write = MAX_IO;
    out->max_pages = MAX_IO / PAGE;
    out->time_gran = 1;
    return sizeof *out;
}

static int do_lookup(const char *name) {
    struct fuse_entry_out *out = answer(sizeof *out);
    if (strcmp(name, "volume") != 0)
        return -ENOENT;
    out->nodeid = FILE_ID;
    int error = fill_attr(&out->attr, FILE_ID);
    return error ? error : (int)sizeof *out;
}

static int do_getattr(uint64_t id) {
    struct fuse_attr_out *out = answer(sizeof *out);
    int error = fill_attr(&out->attr, id);
    return error ? error : (int)sizeof *out;
}

static int do_open(void) {
    struct fuse_open_out *out = answer(sizeof *out);
    out->open_flags = FOPEN_KEEP_CACHE;
    return sizeof *out;
}

static int do_read(const struct fuse_read_in *in) {
    ssize_t size = pread(backing, reply.body, in->size, in->offset);
    return size < 0 ? -errno : (int)size;
}

static int do_write(const struct fuse_write_in *in) {
    ssize_t size = pwrite(backing, in + 1, in->size, in->offset);
    if (size != (ssize_t)in->size)
        return size < 0 ? -errno : -EIO;
    struct fuse_write_out *out = answer(sizeof *out);
    out->size = in->size;
    return sizeof *out;
}

static int do_statfs(void) {
    struct statvfs st;
    if (fstatvfs(backing, &st) < 0)
        return -errno;
    struct fuse_statfs_out *out = answer(sizeof *out);
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

static int handle(void) {
    const void *in = request.body;
    switch (request.head.opcode) {
    case FUSE_READ:
        return do_read(in);
    case FUSE_WRITE:
        return do_write(in);
    case FUSE_INIT:
        return do_init(in);
    case FUSE_LOOKUP:
        return do_lookup(in);
    case FUSE_GETATTR:
        return do_getattr(request.head.nodeid);
    case FUSE_OPEN:
        return do_open();
    case FUSE_STATFS:
        return do_statfs();
    case FUSE_FSYNC:
        return fsync(backing) < 0 ? -errno : 0;
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

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
}

/* The next request: looked for `spin` nanoseconds, then waited for. */
static ssize_t next(int fuse, int64_t spin) {
    for (int64_t deadline = now_ns() + spin;;) {
        ssize_t size = read(fuse, &request, sizeof request);
        if (size >= 0 || errno != EAGAIN)
            return size;
        if (now_ns() < deadline)
            continue;
        poll(&(struct pollfd){.fd = fuse, .events = POLLIN}, 1, -1);
    }
}

static int serve(int fuse, int64_t spin) {
    for (;;) {
        if (next(fuse, spin) < 0) {
            if (errno == ENODEV)
                return 0; /* Unmounted. */
            if (errno == EINTR || errno == ENOENT)
                continue; /* ENOENT: the caller was interrupted before the request was read. */
            die("read /dev/fuse");
        }
        int size = handle();
        if (size == NO_REPLY)
            continue;
        reply.head.unique = request.head.unique;
        reply.head.error = size < 0 ? size : 0;
        reply.head.len = sizeof reply.head + (size < 0 ? 0 : size);
        if (write(fuse, &reply, reply.head.len) < 0 && errno != ENOENT)
            die("write /dev/fuse");
    }
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: limit-dev MOUNTPOINT FILE [SPIN]\n");
        return 2;
    }
    backing = open(argv[2], O_RDWR | O_CLOEXEC);
    if (backing < 0)
        die(argv[2]);
    int64_t spin = argc == 4 ? atoi(argv[3]) * INT64_C(1000) : 0;
    /* Without spinning a read sleeps by itself. */
    int fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC | (spin ? O_NONBLOCK : 0));
    if (fuse < 0)
        die("/dev/fuse");
    char options[64];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (mount("limit-dev", argv[1], "fuse.limit-dev", MS_NOSUID | MS_NODEV, options) < 0)
        die(argv[1]);
    return serve(fuse, spin);
}
