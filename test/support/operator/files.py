"""The hands of an operator in the mount FOLDER: a request a line on stdin, an answer a line on stdout.

Requests and answers are JSON. What fails is answered with the name of its errno. Nothing is done
where FOLDER is a plain folder, because nothing is mounted there: that is ENOTCONN.
"""
import ctypes, errno, json, os, re, sys

UNIT = 4096
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
HEADER = re.compile(rb'^(\d+\.\d+\.\d+)\n')
folder = sys.argv[1]
libc = ctypes.CDLL(None, use_errno=True)
held = {}


def block_of(tag):
    """4 KiB of a tag; a write that tears one is seen."""
    if tag == '0':
        return bytes(UNIT)
    line = tag.encode() + b'\n'
    return (line * (UNIT // len(line) + 1))[:UNIT]


ZEROS = bytes(UNIT)


def tag_of(block):
    if block == ZEROS[:len(block)]:
        return '0'
    found = HEADER.match(block)
    if found:
        tag = found.group(1).decode()
        if block == block_of(tag)[:len(block)]:
            return tag
        return f'torn {tag}'
    return f'unknown {block[:16].hex()}'


class Root:
    """The mount's folder, as it is now: what is done in it is done in the mount or not at all."""

    def __enter__(self):
        self.fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        if os.fstat(self.fd).st_dev == os.stat(os.path.dirname(folder)).st_dev:
            os.close(self.fd)
            raise OSError(errno.ENOTCONN, 'not mounted')
        return self.fd

    def __exit__(self, *args):
        os.close(self.fd)


class Open:
    def __init__(self, request, root, flags):
        # A device's name is absolute: the folder does not count.
        self.fd = os.open(request['name'], flags, 0o600, dir_fd=root)

    def __enter__(self):
        return self.fd

    def __exit__(self, *args):
        os.close(self.fd)


def fallocate(fd, mode, request):
    c = ctypes.c_int64
    if libc.fallocate(fd, mode, c(request['block'] * UNIT), c(request['count'] * UNIT)) != 0:
        raise OSError(ctypes.get_errno(), 'fallocate')


def write(request, root):
    content = b''.join(map(block_of, request['tags']))
    with Open(request, root, os.O_RDWR) as fd:
        done = os.pwrite(fd, content, request['block'] * UNIT)
        flushed = 'ok'
        if request.get('flush'):
            try:
                os.fsync(fd)
            except OSError as failed:
                flushed = errno.errorcode[failed.errno]
    return {'written': done // UNIT, 'flushed': flushed}


def read(request, root):
    with Open(request, root, os.O_RDONLY) as fd:
        # Not what the kernel remembers, but what the pool says.
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        size = os.lseek(fd, 0, os.SEEK_END)
        tags = []
        while len(tags) * UNIT < size:
            part = os.pread(fd, 1 << 20, len(tags) * UNIT)
            if part == b'':
                break
            tags += [tag_of(part[at:at + UNIT]) for at in range(0, len(part), UNIT)]
    return {'size': size, 'tags': tags}


def punch(request, root):
    with Open(request, root, os.O_RDWR) as fd:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, request)


def zero(request, root):
    with Open(request, root, os.O_RDWR) as fd:
        fallocate(fd, ZERO_RANGE | KEEP_SIZE, request)


def truncate(request, root):
    with Open(request, root, os.O_RDWR | (os.O_CREAT if request.get('create') else 0)) as fd:
        os.ftruncate(fd, request['size'])


def flush(request, root):
    with Open(request, root, os.O_RDONLY) as fd:
        os.fsync(fd)


def copy(request, root):
    with Open(request, root, os.O_RDONLY) as source:
        with Open({'name': request['to']}, root, os.O_RDWR) as target:
            offset, to = request['block'] * UNIT, request['toBlock'] * UNIT
            length = request['count'] * UNIT
            done = 0
            while done < length:
                step = os.copy_file_range(source, target, length - done, offset + done, to + done)
                if step == 0:
                    break
                done += step
    return {'copied': done // UNIT}


def rename(request, root):
    os.rename(request['name'], request['to'], src_dir_fd=root, dst_dir_fd=root)


def remove(request, root):
    os.unlink(request['name'], dir_fd=root)


def hold(request, root):
    held[request['name']] = os.open(request['name'], os.O_RDWR, dir_fd=root)


def release(request, root):
    os.close(held.pop(request['name']))


def device_write(request, _):
    """Past the page cache of a loop device, so that an error is ours."""
    import mmap
    content = b''.join(map(block_of, request['tags']))
    buffer = mmap.mmap(-1, len(content))
    buffer.write(content)
    with Open(request, None, os.O_RDWR | os.O_DIRECT) as fd:
        done = os.pwrite(fd, buffer, request['block'] * UNIT)
        os.fsync(fd)
    return {'written': done // UNIT}


def device_read(request, _):
    import mmap
    with Open(request, None, os.O_RDONLY | os.O_DIRECT) as fd:
        size = os.lseek(fd, 0, os.SEEK_END)
        buffer = mmap.mmap(-1, max(size, UNIT))
        done = os.preadv(fd, [buffer], 0)
    return {'size': size, 'tags': [tag_of(buffer[at:at + UNIT]) for at in range(0, done, UNIT)]}


OUTSIDE = {'device_write': device_write, 'device_read': device_read, 'release': release}
INSIDE = {f.__name__: f for f in [write, read, punch, zero, truncate, flush, copy, rename, remove, hold]}


def answer(request):
    try:
        if request['do'] in OUTSIDE:
            return OUTSIDE[request['do']](request, None) or {}
        with Root() as root:
            return INSIDE[request['do']](request, root) or {}
    except OSError as failed:
        return {'errno': errno.errorcode.get(failed.errno, str(failed.errno))}


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
