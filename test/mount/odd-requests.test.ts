/**
 * Goal: a request that is odd is answered as a file of the host's own filesystem answers it.
 * Method: each system call with offsets and lengths at and past every limit, made to a volume and
 * to a plain file; results, errnos and contents must be the same.
 *
 * What differs on purpose: a volume ends at 2^53 - 2^30 bytes (EFBIG past it), where ext4 ends
 * files at 16 TiB, and the kernel lets offsets of FUSE files run to 2^63, so that lseek takes a
 * place and copy_file_range a target past the largest size, to which nothing is ever written.
 * Preallocation past the space of the pool or the disk has its own tests.
 */
import t from 'tap'
import { MountedPool, needs, sh } from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')

/** Runs in both folders; what it prints is compared. */
const PROGRAM = `
import ctypes, errno, os
libc = ctypes.CDLL(None, use_errno=True)
I64, U64 = ctypes.c_int64, ctypes.c_uint64
SIZE = 300000
MIB = 1 << 20
FAR = (1 << 53) - 1
OFFSETS = [0, 1, 511, 4096, 65535, 65536, SIZE - 1, SIZE, SIZE + 1, 1 << 20,
           (1 << 63) - 1, (1 << 63) - 4096, 1 << 62, (1 << 53) - 1, 1 << 53, (1 << 53) + 1, -1, -4096, -(1 << 63)]
LENGTHS = [0, 1, 4095, 65536, 100000, (1 << 31) - 1, (1 << 53) + 1, (1 << 62), (1 << 63) - 1, -1, -(1 << 63)]

def call(name, *args):
    f = getattr(libc, name)
    f.restype = I64 if name != 'fallocate' and name != 'posix_fadvise' else ctypes.c_int
    ctypes.set_errno(0)
    result = f(*args)
    return errno.errorcode[ctypes.get_errno()] if result == -1 else result

def fresh(name):
    fd = os.open(name, os.O_RDWR | os.O_CREAT, 0o600)
    os.ftruncate(fd, 0)
    os.pwrite(fd, bytes(range(256)) * 400, 0)
    os.pwrite(fd, b'z' * 1000, SIZE - 1000)
    os.ftruncate(fd, SIZE)
    return fd

def state(fd):
    size = os.fstat(fd).st_size
    parts = [(0, 400000), (MIB - 10, 200000), (size - 10, 10)]
    return size, hash_of(b''.join(os.pread(fd, n, at) for at, n in parts if at >= 0))

def hash_of(content):
    import hashlib
    return hashlib.sha256(content).hexdigest()[:8]

buffer = ctypes.create_string_buffer(200000)
fd = fresh('a')
for at in OFFSETS:
    for length in [0, 1, 4095, 65536, 100000]:
        print('pread', at, length, call('pread', fd, buffer, U64(length), I64(at)))
for at in OFFSETS:
    for length in [0, 1, 4095, 65536]:
        print('pwrite', at, length, call('pwrite', fd, buffer, U64(length), I64(at)))
        print(state(fd))
fd = fresh('a')
for whence in [0, 1, 2, 3, 4, 5, 99]:
    for at in OFFSETS:
        os.lseek(fd, 0, 0)
        # Where a hole of a file begins is the filesystem's to choose; on places past the end see above.
        if whence in (3, 4) and 0 <= at < SIZE or whence < 3 and at >= FAR: continue
        print('lseek', whence, at, call('lseek', fd, I64(at), whence))
for size in [0, 1, 4095, 65537, SIZE, -1, -(1 << 63), (1 << 63) - 1, (1 << 62), (1 << 53) + 1, 1 << 53, (1 << 53) - 1]:
    print('ftruncate', size, call('ftruncate', fd, I64(size)), state(fd))
MODES = {0: 'allocate', 1: 'keep', 2: 'punch alone', 3: 'punch', 8: 'collapse', 16: 'zero', 17: 'zero, keep',
         32: 'insert', 33: 'insert, keep', 64: 'unshare', 0x80: 'unknown', 0x7fffffff: 'all'}
for mode, name in MODES.items():
    # A file of a volume has no blocks that could be moved.
    if mode in (8, 32, 64): continue
    fd2 = fresh('b')
    for at in OFFSETS:
        for length in LENGTHS:
            # What the disk has no room for, and what the kernel looks at first: see above.
            if 0 <= at < FAR and MIB < length and mode in (0, 1, 16, 17): continue
            if mode in (0x80, 0x7fffffff) and (at >= FAR or length > MIB): continue
            print(name, at, length, call('fallocate', fd2, mode, I64(at), I64(length)))
    print(state(fd2))
fd, other = fresh('a'), fresh('c')
for source in OFFSETS:
    for target in [0, 1, 65536, SIZE, (1 << 63) - 1, -1]:
        for length in [0, 1, 100000, (1 << 62)]:
            a, b = I64(source), I64(target)
            result = call('copy_file_range', fd, ctypes.byref(a), other, ctypes.byref(b), U64(length & ((1 << 64) - 1)), 0)
            print('copy', source, target, length, result, a.value - source, b.value - target)
print(state(other))
for source, target, length in [(0, 0, 100), (0, 50, 100), (65536, 0, 65537), (0, SIZE, SIZE)]:
    a, b = I64(source), I64(target)
    print('copy within', source, target, length,
          call('copy_file_range', fd, ctypes.byref(a), fd, ctypes.byref(b), U64(length), 0), state(fd))
print('flags', call('copy_file_range', fd, None, other, None, U64(1), 1))
for name in [b'constructor', b'__proto__', b'toString']:
    if call('fgetxattr', fd, name, buffer, U64(100)) not in ('ENODATA', 'ENOTSUP'): print(name)
for name in [b'user.thinfs', b'user.' + b'x' * 250, b'user.' + b'x' * 251, b'', b'trusted.x']:
    print('getxattr', name[:20], len(name), call('fgetxattr', fd, name, buffer, U64(100)))
for name in ['x' * 255, 'x' * 256, 'a' * 5000]:
    try: os.stat(name); print('there')
    except OSError as e: print('stat', len(name), errno.errorcode[e.errno])
`

t.test('odd offsets and lengths: the host answers the same', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { a: { size: 1M } }')
  await sh(pool.plain, 'truncate -s 1M a')
  await pool.both(t, `python3 - <<'EOF'\n${PROGRAM}\nEOF`)
  await pool.close(t)
})
