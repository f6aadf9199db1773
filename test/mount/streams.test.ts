/**
 * Goal: `thinfs send`, `receive` and `delta` on pools that are mounted and in use, and on pools
 * that are not. sha256sum, e2fsck and thin_delta judge. Who is killed in the middle leaves nothing.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import { connectDaemon, type DaemonClient } from '../../src/control/index.js'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const PROGRAM = resolve(import.meta.dirname, '../../bin/thinfs.js')
const THINFS = `${process.execPath} ${PROGRAM}`
const YAML = 'data: {size: 256M}\nmetadata: {size: 4M}\nvolumes: {web: {size: 64M}}'
const EMPTY = 'data: {size: 256M}\nmetadata: {size: 4M}'

const sha = async (path: string): Promise<string> => (await run('sha256sum', path)).split(' ')[0]!

/** Sends from one pool to another, by a pipe. */
const pipe = (send: string, receive: string): Promise<string> =>
  sh('/', `${THINFS} send ${send} | ${THINFS} receive ${receive}`)

/** What a command asks a mounted pool, without the start of a program. */
async function ask(pool: MountedPool, act: (daemon: DaemonClient) => Promise<unknown>) {
  const { folder } = pool
  const daemon = (await connectDaemon({ file: join(folder, 'pool.yaml'), folder }))!
  try {
    await act(daemon)
  } finally {
    daemon.close()
  }
}

/** Removes a volume as soon as the kernel has told the engine that nobody has it open any more. */
const remove = (pool: MountedPool, name: string): Promise<void> =>
  until(async () => {
    try {
      await ask(pool, daemon => daemon.remove({ names: [name] }))
      return true
    } catch (err) {
      if ((err as { code: string }).code === 'VOLUME_BUSY') return false
      throw err
    }
  })

const used = async (pool: MountedPool): Promise<number> => (await pool.status()).data.usedBlocks

/** A command whose input and output are ours. */
function begin(t: Test, ...args: string[]): ChildProcess {
  const child = spawn(process.execPath, [PROGRAM, ...args], {
    stdio: ['pipe', 'pipe', 'inherit'],
  })
  child.stdin!.on('error', () => {})
  t.teardown(() => void child.kill('SIGKILL'))
  return child
}

t.test('an ext4, by increments, to a pool with larger blocks', needs('/dev/fuse'), async t => {
  const from = await MountedPool.make(t, YAML)
  const to = await MountedPool.make(t, `${EMPTY}\ndata_block_size: 256K`)
  await from.sh('mkfs.ext4 -q -F -d /usr/share/keyrings web 2>&1 || mkfs.ext4 -q -F web')
  let older = ''
  for (const name of ['one', 'two']) {
    await ask(from, daemon => daemon.snapshot({ origin: 'web', name }))
    const said = await pipe(
      `${from.folder} ${name} ${older && `--from ${older}`}`,
      `${to.folder} ${name}`,
    )
    t.match(said, new RegExp(`^${name}: 64M${older && `, on ${older}`}, .* received$`))
    t.equal(await sha(join(to.path, name)), await sha(join(from.path, name)), name)
    await run('e2fsck', '-fn', join(to.path, name))
    older = name
    await from.sh(`head -c 3000000 /dev/urandom > ${from.plain}/${name}
      debugfs -w -R "write ${from.plain}/${name} ${name}" web
      debugfs -w -R "rm one" web; e2fsck -fy -E discard web > /dev/null || [ $? = 1 ]`)
  }
  const unsent = await attemptThinfs('send', from.folder, 'two', '--from', 'web')
  t.match(unsent, { status: 1, stdout: '', stderr: /^thinfs: web: it was never sent .*NO_BASE/ })

  const live = await attemptThinfs('dump', from.folder)
  t.match(live, { status: 1, stdout: '', stderr: /SNAPSHOT_NOT_HELD/ })
  await ask(from, daemon => daemon.message({ message: 'reserve_metadata_snap' }))
  const dumped = await thinfs('dump', from.folder, '-m')
  t.equal(dumped, await run('thin_dump', '-m', from.metadata), 'as thin_dump -m')
  await ask(from, daemon => daemon.message({ message: 'release_metadata_snap' }))

  const mounted = await thinfs('delta', from.folder, 'one', 'two', '--format', 'xml')
  await until(() => !entries(from).some(({ removed }) => removed))
  await from.umount()
  await to.umount()
  const [one, two] = [numberOf(from, 'one'), numberOf(from, 'two')]
  const tool = await run('thin_delta', '--thin1', one, '--thin2', two, from.metadata)
  const body = (xml: string): string => xml.trimEnd().split('\n').slice(1).join('\n')
  t.equal(body(mounted), body(tool), 'as thin_delta')
  const { mappings } = JSON.parse(await thinfs('map', from.folder, 'one', '--json'))
  const [{ dataOffset, length }] = mappings
  const region = `${dataOffset / 65536}..${(dataOffset + length) / 65536}`
  t.match(await thinfs('rmap', from.folder, region), new RegExp(`-> thin\\(${one}\\) `))
  const files = `sha256sum ${from.folder}/{data,metadata,journal,volumes.json}`
  const before = await sh('/', files)
  t.equal(await thinfs('delta', from.folder, 'one', two, '--format', 'xml'), tool)
  t.equal(await sh('/', files), before, 'delta writes nothing')

  await pipe(`${from.folder} web --from two --no-compress`, `${to.folder} web`)
  await Promise.all([from.mount(), to.mount()])
  t.equal(await sha(join(to.path, 'web')), await sha(join(from.path, 'web')), 'not mounted')
  await to.close(t)
})

interface Entry {
  name: string
  dev_id: number
  removed: boolean
  partial?: object
}

/** What volumes.json has. */
const entries = (pool: MountedPool): Entry[] => JSON.parse(readFileSync(pool.table, 'utf8')).volumes

const numberOf = (pool: MountedPool, wanted: string): string =>
  String(entries(pool).find(({ name }) => name === wanted)!.dev_id)

t.test('a volume that is written to goes as it was', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.sh('head -c 30000000 /dev/urandom > web')
  const before = await sha(join(pool.path, 'web'))
  const send = begin(t, 'send', pool.folder, 'web', '--no-compress')
  await once(send.stdout!, 'readable')
  // The pipe holds a little of it: nearly all is read after this.
  await pool.sh('head -c 30000000 /dev/urandom > web; fallocate -p -o 0 -l 9M web; sync web')
  t.match(await pool.failure(`${THINFS} umount ${pool.folder}`), /MOUNT_BUSY/)
  const receive = begin(t, 'receive', pool.folder, 'copy')
  send.stdout!.pipe(receive.stdin!)
  t.strictSame(await once(receive, 'close'), [0, null])
  t.equal(await sha(join(pool.path, 'copy')), before)
  await remove(pool, 'copy')
  await until(async () => (await used(pool)) <= 30000000 / 65536 + 1)

  // A stream goes to no terminal, and comes from none.
  for (const command of [`send ${pool.folder} web`, `receive ${pool.folder} copy`]) {
    const { stdout } = await attempt('script', '-qec', `${THINFS} ${command}`, '/dev/null')
    t.match(stdout, /^thinfs: the stream .* terminal.*\(BAD_ARGUMENT\)/, command)
  }
  const empty = await attempt('sh', '-c', `${THINFS} receive ${pool.folder} copy < /dev/null`)
  t.match(empty, { status: 1, stderr: /^thinfs: the stream: it ends after 0 bytes.*BAD_STREAM/ })
  const other = await attempt('sh', '-c', `${THINFS} receive ${pool.folder} copy < ${pool.data}`)
  t.match(other, { status: 1, stderr: /does not begin as a stream .*BAD_STREAM/ })
  await pool.close(t)
})

t.test('receive is killed, and so is the engine under it', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, YAML)
  const { plain } = pool
  await pool.sh(`head -c 20000000 /dev/urandom > web; cp web ${plain}/web
    ${THINFS} send ${pool.folder} web > ${plain}/stream`)
  await remove(pool, 'web')
  await until(async () => (await used(pool)) === 0)
  const stream = readFileSync(join(plain, 'stream'))
  const half = stream.subarray(0, stream.length / 2)

  const killed = begin(t, 'receive', pool.folder, 'copy')
  killed.stdin!.write(half)
  await until(async () => (await used(pool)) > 50)
  t.equal(await pool.sh('ls -A'), '', 'it has no name yet')
  killed.kill('SIGKILL')
  await until(async () => entries(pool).length === 0 && (await used(pool)) === 0)

  const receive = begin(t, 'receive', pool.folder, 'copy')
  receive.stdin!.write(half)
  await until(async () => (await used(pool)) > 50)
  await pool.killEngine()
  receive.stdin!.end(stream.subarray(half.length))
  t.strictSame(await once(receive, 'close'), [0, null])
  t.equal(await sha(join(pool.path, 'copy')), await sha(join(plain, 'web')))
  await remove(pool, 'copy')
  await pool.umount()

  const offline = begin(t, 'receive', pool.folder, 'copy')
  offline.stdin!.write(half)
  await until(() => readFileSync(pool.table, 'utf8').includes('"copy"'))
  offline.kill('SIGKILL')
  await once(offline, 'close')
  t.strictSame(JSON.parse(await thinfs('list', pool.folder, '--json')), [], 'no volume')
  await pool.mount()
  await until(async () => (await used(pool)) === 0)
  await pool.close(t)
})

t.test('a stream that is cut short goes on where it was kept', needs('/dev/fuse'), async t => {
  const from = await MountedPool.make(t, YAML)
  const to = await MountedPool.make(t, EMPTY)
  const { plain } = from
  const [here, there] = [from.folder, to.folder]
  await from.sh(`head -c 50000000 /dev/urandom > web
    ${THINFS} send ${here} web --no-compress > ${plain}/stream`)
  const stream = readFileSync(join(plain, 'stream'))
  const part = stream.subarray(0, 45_000_000)

  const killed = begin(t, 'receive', there, 'copy', '--resume')
  killed.stdin!.write(part)
  await until(async () => (await used(to)) > 600 && entries(to).some(({ partial }) => partial))
  killed.kill('SIGKILL')
  await once(killed, 'close')
  t.match((await to.status()).warnings, [
    /^copy: \d+ bytes of a stream .* are kept; thinfs receive/,
  ])
  t.equal(await to.sh('ls -A'), '', 'it has no name yet')
  t.strictSame(JSON.parse(await thinfs('list', there, '--json')), [])
  const again = await attempt('sh', '-c', `${THINFS} receive ${there} copy < ${plain}/stream`)
  t.match(again, {
    status: 1,
    stderr: /copy: a part of a stream is kept; .*--abort.*VOLUME_EXISTS/,
  })
  await to.umount()
  const token = await thinfs('receive', there, 'copy', '--token')
  const { offset } = JSON.parse(await thinfs('receive', there, 'copy', '--token', '--json'))
  t.ok(offset >= 32 * 2 ** 20)
  t.match((await attemptThinfs('send', here, 'web', '--resume', 'x')).stderr, /BAD_ARGUMENT/)

  // The rest is cut short, too: into files, and then it goes on in the mount.
  const cut = `${THINFS} send ${here} web --resume ${token} | head -c 5000000 | ${THINFS} receive ${there} copy`
  t.match(
    (await attempt('sh', '-c', cut)).stderr,
    new RegExp(`kept: thinfs send --resume ${token} `),
  )
  await to.mount()
  await pipe(`${here} web --resume ${token}`, `${there} copy`)
  t.equal(await sha(join(to.path, 'copy')), await sha(join(from.path, 'web')))
  t.match((await attemptThinfs('receive', there, 'copy', '--token')).stderr, /VOLUME_MISSING/)
  t.strictSame((await to.status()).warnings, [])

  const given = `head -c 45000000 ${plain}/stream | ${THINFS} receive ${there} other --resume`
  t.match((await attempt('sh', '-c', given)).stderr, /are kept: thinfs send --resume .*BAD_STREAM/)
  const before = await used(to)
  await until(
    async () => (await attemptThinfs('receive', there, 'other', '--abort', '--yes')).status === 0,
  )
  t.ok((await used(to)) < before)
  await from.sh('printf x | dd of=web conv=notrunc status=none; sync web')
  const other = await attemptThinfs('send', here, 'web', '--resume', token)
  t.match(other, { status: 1, stdout: '', stderr: /has changed since.*NO_BASE/ })
  await to.close(t)
})
