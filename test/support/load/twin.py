"""Does the same to FILE and to TWIN, an ordinary file, until STOP exists: SEED decides what.

Writes of any offset and size, punches, ranges of zeros, copies within the file, cuts, flushes. Every
step ends with a read of both that has to find the same. All requests reach the engine at once: the
file is open with O_DIRECT. Prints {"steps", "bytes"}.
"""
import ctypes, json, os, random, sys

from until import until

file, twin, seed, stop = sys.argv[1:]
rng = random.Random(seed)
libc = ctypes.CDLL(None, use_errno=True)
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 16
both = [os.open(file, os.O_RDWR | os.O_DIRECT), os.open(twin, os.O_RDWR | os.O_CREAT)]
size = os.fstat(both[0]).st_size
os.ftruncate(both[1], size)


def fallocate(fd, mode, offset, length):
    c = ctypes.c_int64
    if libc.fallocate(fd, mode, c(offset), c(length)) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, os.strerror(errno), 'fallocate')


def some_range(longest):
    # Now and then whole blocks.
    unit = rng.choice([1, 512, 4096, 65536])
    length = min(max(unit, rng.randrange(longest) // unit * unit), size)
    return rng.randrange(size - length + 1) // unit * unit, length


def write():
    offset, length = some_range(300_000)
    data = rng.randbytes(length)
    for fd in both:
        assert os.pwrite(fd, data, offset) == length
    return offset, length


def punch():
    offset, length = some_range(2_000_000)
    for fd in both:
        fallocate(fd, PUNCH_HOLE | KEEP_SIZE, offset, length)
    return offset, length


def zero():
    offset, length = some_range(1_000_000)
    fallocate(both[0], ZERO_RANGE | KEEP_SIZE, offset, length)
    fallocate(both[1], PUNCH_HOLE | KEEP_SIZE, offset, length)
    return offset, length


def copy():
    source, length = some_range(2_000_000)
    target = some_range(1)[0] // 65536 * 65536
    length = min(length, abs(source - target), size - max(source, target))
    done = 0
    while done < length:
        done += os.copy_file_range(both[0], both[0], length - done, source + done, target + done)
    os.pwrite(both[1], os.pread(both[1], length, source), target)
    return target, length


def cut():
    shorter = rng.randrange(size // 2, size)
    for fd in both:
        os.ftruncate(fd, shorter)
        os.ftruncate(fd, size)
    return shorter, min(size - shorter, 1 << 20)


def flush():
    os.fsync(both[0])
    return some_range(1_000_000)


read = 0
for nr in until(stop):
    [step] = rng.choices([write, punch, zero, copy, cut, flush], [60, 10, 5, 10, 2, 5])
    offset, length = step()
    found, wanted = (os.pread(fd, length, offset) for fd in both)
    assert found == wanted, f'step {nr}, {step.__name__} of {length} bytes at {offset}: they differ'
    read += length
print(json.dumps({'steps': nr + 1, 'bytes': read}))
