/*
 * limit-uring: the least that a single-threaded server can do whose requests come through an io_uring, as
 * the mark to measure by.
 *
 *   limit-uring MOUNTPOINT FILE [SPIN]
 *
 * serves FILE as MOUNTPOINT/volume until it is unmounted, and looks for the next request for SPIN
 * microseconds before it sleeps. Needs Linux 6.14 with fuse.enable_uring on.
 *
 * A request is one pread(2) or pwrite(2); all that wait are answered, and the next ones asked for, by one
 * io_uring_enter(2). Flags and limits of the connection are those of src/fuse, so that the kernel
 * sends both servers the same requests. What little Debian 12's headers lack is declared here.
 */
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <linux/io_uring.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

enum {
    MAX_IO = 1 << 20,
    PAGE = 4096,
    FILE_ID = FUSE_ROOT_ID + 1,
    /* Requests of one CPU at a time. */
    DEPTH = 64,
    SLOT = PAGE + MAX_IO,
    REGISTER = 1,
    COMMIT_AND_FETCH = 2,
    OVER_IO_URING = 1 << (41 - 32),
    INIT_EXT = 1 << 30,
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

static const uint32_t FLAGS = FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_ASYNC_DIO |
                              FUSE_PARALLEL_DIROPS | FUSE_MAX_PAGES | FUSE_HANDLE_KILLPRIV_V2 |
                              INIT_EXT;

static int backing, fuse, ring;
static struct slot *slots;
static struct iovec (*iovecs)[2];
static uint32_t *sq_head, *sq_tail, *sq_flags, *cq_head, *cq_tail, sq_mask, cq_mask, tail;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static size_t kept;

static _Noreturn void die(const char *what) {
    fprintf(stderr, "limit-uring: %s: %s\n", what, strerror(errno));
    exit(1);
}

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

/* The handlers return the bytes of the reply's payload, or a negative errno. */

static int do_lookup(struct slot *slot) {
    struct fuse_entry_out *out = (void *)slot->payload;
    if (strcmp(slot->payload, "volume") != 0)
        return -ENOENT;
    memset(out, 0, sizeof *out);
    out->nodeid = FILE_ID;
    int error = fill_attr(&out->attr, FILE_ID);
    return error ? error : (int)sizeof *out;
}

static int do_getattr(struct slot *slot) {
    struct fuse_attr_out *out = memset(slot->payload, 0, sizeof *out);
    int error = fill_attr(&out->attr, slot->in.nodeid);
    return error ? error : (int)sizeof *out;
}

static int do_read(struct slot *slot) {
    const struct fuse_read_in *in = (void *)slot->op_in;
    ssize_t size = pread(backing, slot->payload, in->size, in->offset);
    return size < 0 ? -errno : (int)size;
}

static int do_write(struct slot *slot) {
    const struct fuse_write_in *in = (void *)slot->op_in;
    uint32_t wanted = in->size;
    ssize_t size = pwrite(backing, slot->payload, wanted, in->offset);
    if (size != (ssize_t)wanted)
        return size < 0 ? -errno : -EIO;
    struct fuse_write_out *out = memset(slot->payload, 0, sizeof *out);
    out->size = wanted;
    return sizeof *out;
}

static int do_statfs(struct slot *slot) {
    struct statvfs st;
    if (fstatvfs(backing, &st) < 0)
        return -errno;
    struct fuse_statfs_out *out = memset(slot->payload, 0, sizeof *out);
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

static int handle(struct slot *slot) {
    switch (slot->in.opcode) {
    case FUSE_READ:
        return do_read(slot);
    case FUSE_WRITE:
        return do_write(slot);
    case FUSE_LOOKUP:
        return do_lookup(slot);
    case FUSE_GETATTR:
        return do_getattr(slot);
    case FUSE_OPEN: {
        struct fuse_open_out *out = memset(slot->payload, 0, sizeof *out);
        out->open_flags = FOPEN_KEEP_CACHE;
        return sizeof *out;
    }
    case FUSE_STATFS:
        return do_statfs(slot);
    case FUSE_FSYNC:
        return fsync(backing) < 0 ? -errno : 0;
    case FUSE_FLUSH:
    case FUSE_RELEASE:
    case FUSE_DESTROY:
        return 0;
    default:
        return -ENOSYS;
    }
}

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
        die("io_uring_enter");
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
    if (kept >= ENOUGH)
        enter(0);
}

static int64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * INT64_C(1000000000) + now.tv_nsec;
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
        if (__atomic_load_n(sq_flags, __ATOMIC_ACQUIRE) & IORING_SQ_TASKRUN)
            enter(0);
        if (completed() == 0 && now_ns() >= deadline)
            enter(1);
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
            if (result == -ENOTCONN)
                return; /* Unmounted. */
            if (result < 0) {
                errno = -result;
                die("FUSE over io_uring");
            }
            answer(index, handle(&slots[index]));
        }
    }
}

static void make_ring(uint32_t entries) {
    struct io_uring_params params = {
        .flags = IORING_SETUP_SQE128 | IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN |
                 IORING_SETUP_TASKRUN_FLAG,
    };
    ring = syscall(SYS_io_uring_setup, entries, &params);
    if (ring < 0)
        die("io_uring_setup");
    size_t size = params.cq_off.cqes + params.cq_entries * sizeof *cqes;
    size_t sq_size = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
    int protection = PROT_READ | PROT_WRITE, flags = MAP_SHARED | MAP_POPULATE;
    char *rings = mmap(NULL, size > sq_size ? size : sq_size, protection, flags, ring, IORING_OFF_SQ_RING);
    sqes = mmap(NULL, params.sq_entries * 128, protection, flags, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || sqes == MAP_FAILED)
        die("mmap");
    sq_head = (void *)(rings + params.sq_off.head);
    sq_tail = (void *)(rings + params.sq_off.tail);
    sq_flags = (void *)(rings + params.sq_off.flags);
    cq_head = (void *)(rings + params.cq_off.head);
    cq_tail = (void *)(rings + params.cq_off.tail);
    cqes = (void *)(rings + params.cq_off.cqes);
    sq_mask = params.sq_entries - 1;
    cq_mask = params.cq_entries - 1;
    uint32_t *array = (void *)(rings + params.sq_off.array);
    for (uint32_t i = 0; i < params.sq_entries; i++)
        array[i] = i;
}

/* INIT comes by /dev/fuse. */
static void init(void) {
    static struct {
        struct fuse_in_header head;
        struct fuse_init_in in;
        char rest[MAX_IO + PAGE];
    } request;
    if (read(fuse, &request, sizeof request) < 0)
        die("read /dev/fuse");
    if ((((uint32_t *)&request.in)[4] & OVER_IO_URING) == 0) {
        fprintf(stderr, "limit-uring: the kernel offers no FUSE over io_uring\n");
        exit(1);
    }
    struct {
        struct fuse_out_header head;
        struct fuse_init_out out;
    } reply = {
        .head = {.len = sizeof reply, .unique = request.head.unique},
        .out =
            {
                .major = FUSE_KERNEL_VERSION,
                .minor = request.in.minor < 45 ? request.in.minor : 45,
                .max_readahead = request.in.max_readahead,
                .flags = request.in.flags & FLAGS,
                .max_background = 512,
                .congestion_threshold = 384,
                .max_write = MAX_IO,
                .max_pages = MAX_IO / PAGE,
                .time_gran = 1,
            },
    };
    ((uint32_t *)&reply.out)[8] = OVER_IO_URING; /* flags2 */
    if (write(fuse, &reply, sizeof reply) < 0)
        die("write /dev/fuse");
}

/* One queue for each CPU that could ever be. */
static uint32_t nr_queues(void) {
    uint32_t last = 0;
    FILE *possible = fopen("/sys/devices/system/cpu/possible", "r");
    if (possible == NULL)
        die("/sys/devices/system/cpu/possible");
    while (fscanf(possible, "%*[-,]") >= 0 && fscanf(possible, "%u", &last) == 1)
        continue;
    fclose(possible);
    return last + 1;
}

int main(int argc, char **argv) {
    if (argc != 3 && argc != 4) {
        fprintf(stderr, "usage: limit-uring MOUNTPOINT FILE [SPIN]\n");
        return 2;
    }
    backing = open(argv[2], O_RDWR | O_CLOEXEC);
    if (backing < 0)
        die(argv[2]);
    fuse = open("/dev/fuse", O_RDWR | O_CLOEXEC);
    if (fuse < 0)
        die("/dev/fuse");
    char options[64];
    snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", fuse);
    if (mount("limit-uring", argv[1], "fuse.limit-uring", MS_NOSUID | MS_NODEV, options) < 0)
        die(argv[1]);
    init();
    uint32_t count = nr_queues() * DEPTH;
    make_ring(count);
    slots = mmap(NULL, (size_t)count * SLOT, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    iovecs = calloc(count, sizeof *iovecs);
    if (slots == MAP_FAILED || iovecs == NULL)
        die("mmap");
    for (uint32_t i = 0; i < count; i++) {
        iovecs[i][0] = (struct iovec){.iov_base = &slots[i], .iov_len = 288};
        iovecs[i][1] = (struct iovec){.iov_base = slots[i].payload, .iov_len = MAX_IO};
        push(i, REGISTER, 0);
    }
    serve(argc == 4 ? atoi(argv[3]) * INT64_C(1000) : 0);
    return 0;
}
