// Goal: a volume's loop device is as it was asked for, has a name that stays, and nobody has to
// know which it is to mount what is on it. Method: sfdisk, blockdev, mkfs, debugfs, mount and
// losetup say what is so.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import {
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  readlinkSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { basename, join } from 'node:path'
import t, { type Test } from 'tap'
import {
  type AttachedVolume,
  attachedVolumes,
  attachLoop,
  detachStale,
} from '../../src/host/index.js'
import {
  attempt,
  attemptThinfs,
  loopsWithin,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onLoop = needs('/dev/fuse', '/dev/loop-control')
const YAML = 'data: { size: 128M }\nvolumes: { web: { size: 64M }, db: { size: 64M } }'

async function refused(t: Test, line: string | RegExp, ...args: string[]): Promise<void> {
  const { status, stderr } = await attemptThinfs(...args)
  t.equal(status, 1, `${args.join(' ')}: ${stderr}`)
  t.match(stderr, /^thinfs: [^\n]+\n$/)
  t.match(stderr, line)
}

t.test('attach: partitions, sectors, names', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML.replace('db:', '"a b":'))
  const { name: of } = await pool.status()
  // The name of the pool is every test's, that of the process none other's.
  const name = `web-${process.pid}`
  await sh('/', `printf 'size=32M\nsize=16M\n' | sfdisk -q ${pool.path}/web`)
  const path = await thinfs(
    ...['attach', pool.folder, 'web', '--partscan', '--sector-size', '512', '--name', name],
  )
  t.equal(path, `/run/thinfs/${of}/${name}`)
  const device = readlinkSync(path)
  // As many as losetup has them of a plain file: none where the kernel does not read such tables.
  await sh(pool.plain, `cp --sparse=always ${pool.path}/web disk`)
  const plain = await run('losetup', '--find', '--show', '--partscan', join(pool.plain, 'disk'))
  const partitionsOf = (device: string): number =>
    readdirSync(`/sys/block/${basename(device)}`).filter(name => name.startsWith('loop')).length
  t.equal(partitionsOf(device), partitionsOf(plain))
  t.equal(readFileSync(`/sys/block/${basename(device)}/loop/partscan`, 'utf8'), '1\n')
  await run('losetup', '--detach', plain)
  const wrong = `${device} is on it and has sectors of 512 bytes; thinfs detach takes it away`
  await refused(t, wrong, 'attach', pool.folder, 'web', '--sector-size', '4096')
  t.match(JSON.parse(await thinfs('attached', pool.folder, '--json')), [
    { device, pool: `${pool.folder}/pool.yaml`, volume: 'web', names: [path], stale: false },
  ])
  await refused(t, /it has partitions \(dos\)/, 'mount-volume', pool.folder, 'web', pool.plain)
  await thinfs('detach', pool.folder, 'web')
  t.notOk(existsSync(path), 'the name went with the device')

  const other = await thinfs('attach', pool.folder, 'a b', '--sector-size', '4096', '--read-only')
  t.equal(await run('blockdev', '--getss', '--getro', other), '4096\n1')
  t.match(await thinfs('attached', pool.folder), /^\/dev\/loop\d+ +a b .* read-only$/m)
  const readOnly = `${pool.path}/a b: ${other} is on it and cannot be written to`
  await refused(t, `${readOnly}; thinfs detach`, 'attach', pool.folder, 'a b')
  t.equal((await attemptThinfs('attach', pool.folder, 'web', '--name', '../x')).status, 2)
  const taken = await thinfs('attach', pool.folder, 'web', '--name', name)
  const busy = `${taken}: it is the name of ${readlinkSync(taken)}, which is attached`
  await refused(t, busy, 'attach', pool.folder, 'a b', '--read-only', '--name', name)
  await pool.detach('a b')
  await thinfs('umount', pool.folder, '--recursive')
  t.notOk(existsSync(taken), 'another device may have the number next')
  await pool.close(t)
})

t.test('mount-volume, umount-volume', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const at = join(pool.base, 'at')
  mkdirSync(at)
  const mount = ['mount-volume', pool.folder, 'web', at]
  await refused(t, /^thinfs: web: it has no filesystem; mkfs.ext4 /, ...mount)
  t.strictSame(loopsWithin(pool.base), [], 'what failed leaves no device')

  await run('mkfs.ext4', '-q', '-F', join(pool.path, 'web'))
  // Signs of squashfs, in the part of ext4 that is nobody's.
  const sign = (text: string, at: number): Promise<string> =>
    sh(pool.path, `printf '${text}' | dd of=web bs=1 seek=${at} conv=notrunc status=none`)
  await sign('hsqs', 0)
  await sign('\\4', 28)
  await refused(t, /^thinfs: web: it has signs of several filesystems; wipefs/, ...mount)
  await sign('\\0\\0\\0\\0', 0)
  const writer = spawn('sh', ['-c', 'exec sleep 1000 3<>web'], { cwd: pool.path })
  t.teardown(() => writer.kill('SIGKILL'))
  await until(() => readFileSync(`/proc/${writer.pid}/comm`, 'utf8') === 'sleep\n')
  const by = `web: process ${writer.pid} (sleep) has it open to write to it (VOLUME_BUSY)`
  await refused(t, by, ...mount)
  writer.kill('SIGKILL')
  await once(writer, 'close')
  t.strictSame(loopsWithin(pool.base), [])
  await thinfs(...mount, '-o', 'discard,noatime')
  t.match(await run('findmnt', '-no', 'OPTIONS', at), /noatime.*discard/)
  writeFileSync(join(at, 'file'), 'kept')
  await run('fsfreeze', '-f', at)
  t.match(JSON.parse(await thinfs('umount-volume', pool.folder, 'web', '--json')), {
    folders: [at],
    detached: [/^\/dev\/loop\d+$/],
  })
  t.strictSame(loopsWithin(pool.base), [])
  await refused(t, /no loop device is attached/, 'umount-volume', pool.folder, 'web')

  // A count that fsck(8) mends by itself, then damage that it asks about.
  const spoil = (...commands: string[]): Promise<string> =>
    sh('/', commands.map(c => `debugfs -w -R '${c}' ${pool.path}/web 2>&1`).join('\n'))
  await spoil('set_super_value free_blocks_count 7', 'set_super_value state 2')
  t.match(await attemptThinfs(...mount), { status: 0, stderr: 'thinfs: web: fsck has mended it\n' })
  t.equal(readFileSync(join(at, 'file'), 'utf8'), 'kept')
  await thinfs('umount-volume', pool.folder, 'web')
  await spoil('clri <2>', 'set_super_value state 2')
  await refused(t, /fsck .*asks what to do \(TOOL_FAILED\)$/m, ...mount)
  t.strictSame(loopsWithin(pool.base), [])
  await pool.close(t)
})

t.test('what a mount that is gone leaves behind', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const [web, db] = [await pool.attach('web'), await pool.attach('db')]
  await run('mkfs.ext4', '-q', db)
  const at = join(pool.base, 'at')
  mkdirSync(at)
  await run('mount', db, at)
  // Both processes, and then the dead mount.
  await pool.kill()
  // Other tests' devices are looked at here as well, and left alone.
  const own = async (): Promise<AttachedVolume[]> =>
    (await attachedVolumes(null)).filter(({ device }) => [web, db].includes(device))
  t.match(
    (await own()).sort((a, b) => b.volume.localeCompare(a.volume)),
    [
      { device: web, volume: 'web', pool: null, stale: true, users: [] },
      { device: db, volume: 'db', pool: null, stale: true, users: [`mounted at ${at}`] },
    ],
  )
  t.strictSame(await detachStale(await own()), {
    detached: [web],
    kept: [`${db} is mounted at ${at}`],
  })
  await pool.mount()
  t.match(await thinfs('attached'), new RegExp(`^${db} +db +- .*STALE`, 'm'))
  const works = await pool.attach('db')
  t.not(works, db, 'the volume has a device that works')
  await run('umount', at)
  t.strictSame(await detachStale(await own()), { detached: [db], kept: [] })
  await pool.detach('db')
  await pool.close(t)
})

t.test('a mount that is dead does not pass for one that lives', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const device = await pool.attach('web')
  const dead = await MountedPool.make(t, YAML)
  for (const pid of dead.processes()) process.kill(pid, 'SIGKILL')
  await until(() => dead.processes().length === 0)
  // At the place of the other pool's mount is now the dead one.
  await run('mount', '--bind', dead.path, pool.path)
  const own = (await attachedVolumes(null)).filter(volume => volume.device === device)
  t.match(own, [{ stale: false, users: [] }])
  await run('umount', '--internal-only', pool.path)
  // Nor does a number that is another's by now.
  const before = own.map(volume => ({ ...volume, stale: true, attachment: '0' }))
  t.strictSame(await detachStale(before), { detached: [], kept: [] })
  // What anybody may call his mount keeps no device.
  await run('mount', '-t', 'tmpfs', device, pool.plain)
  await pool.detach('web')
  await run('umount', pool.plain)

  await thinfs('mount', dead.folder, dead.plain)
  const name = `${dead.folder}/pool.yaml is mounted at ${dead.plain}; another mount has its name`
  await refused(t, name, 'status', dead.path)
  await thinfs('umount', dead.path)
  t.notOk(dead.isMounted)
  t.equal(await sh(dead.plain, 'ls'), 'db\nweb', 'the pool is where it was')
  await thinfs('umount', dead.plain)
  for (const one of [pool, dead]) await one.close(t)
})

t.test('a losetup that hangs is not waited for without limit', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const bin = join(pool.base, 'bin')
  mkdirSync(bin)
  writeFileSync(join(bin, 'losetup'), `#!/bin/sh\necho $$ > ${bin}/pid\nexec sleep 1000\n`, {
    mode: 0o755,
  })
  const path = process.env.PATH
  process.env.PATH = `${bin}:${path}`
  try {
    await t.rejects(attachLoop(join(pool.path, 'web'), {}, 500), {
      code: 'TOOL_FAILED',
      message: /has not ended after 0.5 s/,
    })
  } finally {
    process.env.PATH = path
  }
  const pid = readFileSync(join(bin, 'pid'), 'utf8').trim()
  await until(async () => (await attempt('kill', '-0', pid)).status !== 0)
  rmSync(bin, { recursive: true })
  await pool.close(t)
})
