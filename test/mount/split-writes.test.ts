// Goal: what a loop device flushed is there, also where the kernel has sent one request of it as
// several WRITEs, of which a full pool refused the last. Method: a request as large as the device
// takes, on a pool with room for its first MiB; direct I/O or not is the user's choice.
import { join } from 'node:path'
import t from 'tap'
import { attempt, MountedPool, needs, python, run } from '../support/mounted-pool.js'

// A huge page is one segment of memory: smaller ones make smaller requests.
const WRITE_AND_FLUSH = (device: string): string => `
import ctypes, mmap, os
SIZE, HUGE = 1280 << 10, 2 << 20
memory = mmap.mmap(-1, 2 * HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
memory.madvise(mmap.MADV_HUGEPAGE)
memory[:] = b'y' * len(memory)
at = -ctypes.addressof(ctypes.c_char.from_buffer(memory)) % HUGE
fd = os.open('${device}', os.O_RDWR | os.O_DIRECT)
try:
    os.pwrite(fd, memoryview(memory)[at:at + SIZE], 0)
    os.fsync(fd)
    back = mmap.mmap(-1, SIZE)
    os.preadv(fd, [back], 0)
    print('there' if back[:] == b'y' * SIZE else 'flushed, and not there')
except OSError as failed:
    print(failed.strerror)
`

for (const transport of ['dev', 'fuse-native']) {
  for (const direct of ['off', 'on']) {
    t.test(
      `${transport}, direct I/O ${direct}`,
      needs('/dev/fuse', '/dev/loop-control'),
      async t => {
        const volumes = 'volumes: { a: { size: 8M }, b: { size: 64M } }'
        const yaml = `transport: ${transport}\ndata: { size: 16M }\n${volumes}\non_full: error`
        const pool = await MountedPool.make(t, yaml)
        await pool.sh('dd if=/dev/urandom of=b bs=64K count=240 conv=notrunc,fsync status=none')
        const file = join(pool.path, 'a')
        const device = await run('losetup', '--find', '--show', `--direct-io=${direct}`, file)
        t.teardown(() => attempt('losetup', '--detach', device))
        const said = await python(pool.base, WRITE_AND_FLUSH(device))
        t.match(said, /^(No space left on device|Input\/output error)$/)
        await run('losetup', '--detach', device)
        await pool.close(t)
      },
    )
  }
}
