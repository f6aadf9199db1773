// Goal: a volume fails, forgets and is slow just where it was told to, and no other volume does.
// Method: the calls that the kernel's FUSE client makes, against a plain buffer of what was
// written; on a mount, what dd and cmp say.
import t, { type Test } from 'tap'
import { errnoFrom as errno } from '../support/errno.js'
import { openLab } from '../support/lab.js'
import { attemptThinfs, MountedPool, needs, thinfs } from '../support/mounted-pool.js'
import { makePool } from '../support/pool-files.js'

const KIB = 1024
const MIB = 1024 * KIB
const KEEP_SIZE = 1
const PUNCH_HOLE = 2
const ZERO_RANGE = 16

async function opened(t: Test) {
  const { close: end, ...lab } = await openLab(await makePool(t.testdir()))
  return { ...lab, web: await lab.create('web', MIB), other: await lab.create('other', MIB), end }
}

t.test('requests that touch a range fail with EIO and change nothing', async t => {
  const { lab, fs, web, other, end } = await opened(t)
  const data = Buffer.alloc(64 * KIB, 1)
  await fs.write(web, 0, data.length, data, 0)
  const read = (at: number, size: number) => errno(() => fs.read(web, at, size, data, 0))
  const write = (at: number, size: number) =>
    errno(() => fs.write(web, at, size, Buffer.alloc(size, 2), 0))
  const fallocate = (mode: number, at: number, size: number) =>
    errno(() => fs.fallocate(web, mode | KEEP_SIZE, at, size))

  await lab.inject({ name: 'web', readErrors: [8 * KIB, 4 * KIB], writeErrors: [32 * KIB, 1] })
  t.equal(await read(0, 8 * KIB), null)
  t.equal(await read(8 * KIB - 1, 2), 'EIO')
  t.equal(await read(12 * KIB - 1, 1), 'EIO')
  t.equal(await read(12 * KIB, 4 * KIB), null)
  t.equal(await write(8 * KIB, 4 * KIB), null, 'a range that cannot be read can be written')
  t.equal(await write(16 * KIB, 16 * KIB), null)
  t.equal(await write(16 * KIB, 16 * KIB + 1), 'EIO')
  t.equal(await fallocate(PUNCH_HOLE, 0, 64 * KIB), 'EIO')
  t.equal(await fallocate(ZERO_RANGE, 32 * KIB, 4 * KIB), 'EIO')
  t.equal(await errno(() => fs.read(other, 8 * KIB, 4 * KIB, data, 0)), null, 'another volume')

  t.same(await lab.inject({ name: 'web', readErrors: [0, 512] }), {
    name: 'web',
    readErrors: [
      [8 * KIB, 4 * KIB],
      [0, 512],
    ],
    writeErrors: [[32 * KIB, 1]],
    ignoreFlushes: false,
    latencyMs: 0,
  })
  t.equal(await read(0, 1), 'EIO')
  await lab.inject({ name: 'web', clear: true })
  const found = Buffer.alloc(64 * KIB)
  t.equal(fs.read(web, 0, found.length, found, 0), found.length)
  const wanted = Buffer.alloc(64 * KIB, 1)
  wanted.fill(2, 8 * KIB, 12 * KIB).fill(2, 16 * KIB, 32 * KIB)
  t.ok(found.equals(wanted), 'only what was answered with success was done')
  await end()
})

t.test('a slow volume keeps nobody else waiting, and clearing it delays nothing new', async t => {
  const { lab, fs, web, other, end } = await opened(t)
  await lab.inject({ name: 'web', latencyMs: 60_000 })
  const data = Buffer.alloc(4 * KIB, 1)
  const waiting = new AbortController()
  const requester = { signal: () => waiting.signal }
  const slow = fs.write(web, 0, data.length, data, 0, requester)
  t.type(slow, Promise)
  t.equal(fs.read(web, 0, 512, data, 0), -1, 'a read has to be waited for')
  t.equal(fs.write(other, 0, data.length, data, 0), data.length, 'at once')
  t.equal(fs.read(other, 0, data.length, data, 0), data.length, 'at once')
  await fs.fsync(other)
  waiting.abort(new Error('killed'))
  await t.rejects(slow as Promise<number>, { message: 'killed' }, 'who waits may be killed')

  await lab.inject({ name: 'web', latencyMs: 1 })
  const again = Buffer.alloc(4 * KIB, 3)
  const written = fs.write(web, 0, again.length, again, 0)
  again.fill(9) // The buffer is the caller's again.
  t.equal(await written, again.length)
  const found = Buffer.alloc(4 * KIB)
  t.equal(await fs.readLater(web, 0, found.length, found, 0), found.length)
  t.ok(found.equals(Buffer.alloc(4 * KIB, 3)))
  await lab.inject({ name: 'web', latencyMs: 0 })
  t.equal(fs.read(web, 0, 512, data, 0), 512, 'at once')
  await end()
})

t.test('an ignored flush makes nothing durable; the pool commits all the same', async t => {
  const { volumes, lab, fs, web, other, end } = await opened(t)
  const data = Buffer.alloc(64 * KIB, 1)
  await lab.inject({ name: 'web', ignoreFlushes: true })
  await volumes.commit()
  await fs.write(web, 0, data.length, data, 0)
  const { devId } = volumes.find('web')!.device
  await fs.fsync(web)
  t.notOk(volumes.pool.metadata.isDurable(devId), 'the mapping is not')
  await fs.fsync(web)
  await fs.write(other, 0, data.length, data, 0)
  await fs.fsync(other)
  t.ok(volumes.pool.metadata.isDurable(devId), "a commit of another volume's flush is a commit")
  await end()
})

t.test('what is no range, time or volume is refused, and changes nothing', async t => {
  const { volumes, lab, end } = await opened(t)
  const code = (request: object) =>
    lab.inject({ name: 'web', ...request }).then(
      () => null,
      err => err.code,
    )
  t.equal(await code({ name: 'nobody' }), 'VOLUME_MISSING')
  t.equal(await code({ readErrors: [MIB - 512, 1024] }), 'BAD_ARGUMENT')
  t.equal(await code({ writeErrors: [0, 0] }), 'BAD_ARGUMENT')
  t.equal(await code({ readErrors: [512] }), 'BAD_ARGUMENT')
  t.equal(await code({ latencyMs: 60_001 }), 'BAD_ARGUMENT')
  const { io, device } = volumes.find('web')!
  t.equal(io, device, 'nothing stands before the device')
  await end()
})

t.test(
  'on a mount: the kernel passes it on, the next engine goes on',
  needs('/dev/fuse'),
  async t => {
    const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { web: { size: 1M } }')
    const inject = (...options: string[]) => thinfs('inject', pool.folder, 'web', ...options)
    await pool.sh(
      'dd if=/dev/urandom of=web bs=1M count=1 conv=notrunc status=none; cat web > /dev/null',
    )
    t.equal(await inject(), 'web: nothing is injected')
    t.equal(
      await inject('--read-error', '64K+4K', '--latency', '2ms', '--ignore-flushes'),
      'web: read error 64K+4K\nweb: flushes are ignored\nweb: latency 2ms',
    )
    const cached = await pool.failure('dd if=web bs=4K skip=16 count=1 of=/dev/null status=none')
    t.match(cached, /Input\/output error/, 'though the kernel had the bytes in its cache')
    t.match((await pool.status()).warnings, [/^web: injected: read errors, flushes are ignored, /])
    await pool.killEngine()
    t.match(await inject(), /read error 64K\+4K\n.*ignored\n.*2ms/)
    const direct = 'dd if=web iflag=direct bs=4K count=1 of=/dev/null status=none'
    t.match(await pool.failure(`${direct} skip=16`), /Input\/output error/)
    await pool.sh(
      `${direct} skip=17; ${direct} skip=15; dd if=/dev/zero of=web bs=4K count=1 conv=notrunc,fsync status=none`,
    )
    t.match(await attemptThinfs('inject', pool.folder, 'web', '--read-error', '1M'), {
      status: 2,
      stderr: /^thinfs: 1M is not a range: OFFSET\+LENGTH.*\n$/,
    })
    t.match(await attemptThinfs('inject', pool.folder, 'web', '--read-error', '1M+4K'), {
      status: 2,
      stderr: /^thinfs: web: 1M\+4K is no range .* has 1M \(BAD_ARGUMENT\)\n$/,
    })
    t.match(await attemptThinfs('inject', pool.folder, 'web', '--latency', '20'), { status: 2 })
    await pool.remount()
    t.equal(await inject(), 'web: nothing is injected', 'the end of the mount ends it')
    await inject('--write-error', '0+1M')
    t.match(
      await pool.failure('dd if=/dev/zero of=web bs=4K count=1 conv=notrunc,fsync status=none'),
      /error/,
    )
    await inject('--clear')
    await pool.sh('dd if=/dev/zero of=web bs=4K count=1 conv=notrunc,fsync status=none')
    await pool.umount()
    t.match(await attemptThinfs('inject', pool.folder, 'web'), {
      status: 1,
      stderr: /is not mounted; .* \(NOT_MOUNTED\)\n$/,
    })
    await pool.close(t)
  },
)
