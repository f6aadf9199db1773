/**
 * The commands on a mounted pool, with real loop devices and filesystems.
 *
 * What ext4's superblock says of its journal is the judge of `--freeze`: a frozen filesystem needs
 * no recovery, one that is merely mounted does.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { open, readFile, writeFile } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { done, PROGRAM, refused, run, thinfs } from './command-line.js'

const FREEZE = join(import.meta.dirname, '../../src/host/freeze.ts')

/** A pool with a volume `web`, mounted at `mnt`, and a folder `fs` to mount a filesystem at. */
async function mountedPool(t: Test) {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-cli-'))
  const [pool, mnt, fs] = ['pool', 'mnt', 'fs'].map(name => join(folder, name)) as [
    string,
    string,
    string,
  ]
  mkdirSync(mnt)
  mkdirSync(fs)
  await done(t, 'init', pool, '--data-size', '256M', '--volume', 'web=64M')
  t.teardown(async () => {
    await run('umount', '-q', fs)
    await thinfs('detach', pool, 'web')
    await thinfs('umount', pool)
    rmSync(folder, { recursive: true })
  })
  t.match(JSON.parse(await done(t, 'mount', pool, mnt, '--json')), { pid: Number, mountPoint: mnt })
  return { folder, pool, mnt, fs }
}

async function must(t: Test, program: string, ...args: string[]): Promise<string> {
  const { status, stdout, stderr } = await run(program, ...args)
  t.equal(status, 0, `${program} ${args.join(' ')}: ${stderr}`)
  return stdout
}

t.test('resize --dry-run counts what is mapped past the new end', async t => {
  const { pool, mnt } = await mountedPool(t)
  const plan = async (size: string) =>
    JSON.parse(await done(t, 'resize', pool, 'web', size, '--dry-run', '--json'))
  const mapped = async (): Promise<number> =>
    JSON.parse(await done(t, 'list', pool, '--json'))[0].mapped
  // Three blocks of 64 KiB.
  for (const at of [0, 1, 100]) {
    const to = ['bs=64K', 'count=1', `seek=${at}`, 'conv=notrunc,fsync', 'status=none']
    await must(t, 'dd', 'if=/dev/urandom', `of=${join(mnt, 'web')}`, ...to)
  }
  t.match(await plan('96K'), { volume: { name: 'web' }, size: 98304, wouldLose: 98304 })
  t.match(await plan('-60M'), { size: 4 * 2 ** 20, wouldLose: 65536 })
  t.match(await plan('+1M'), { size: 65 * 2 ** 20, wouldLose: 0 })
  await done(t, 'umount', pool)
  const lost = '64K mapped past the new end would be lost\n'
  t.equal(await done(t, 'resize', pool, 'web', '1M', '-n'), `web: 1M, it is 64M; ${lost}`)
  await refused(t, 2, /size 1000: /, 'resize', pool, 'web', '1000', '--dry-run')
  t.equal(await mapped(), 3 * 65536)
  await done(t, 'resize', pool, 'web', '1M', '--shrink')
  t.equal(await mapped(), 2 * 65536, 'so much was lost')
})

const needsRecovery = async (t: Test, volume: string): Promise<boolean> =>
  /^Filesystem features:.* needs_recovery/m.test(await must(t, 'dumpe2fs', '-h', volume))

t.test('a volume as a disk: attach, snapshot, detach, umount', async t => {
  const { folder, pool, mnt, fs } = await mountedPool(t)

  const device = (await done(t, 'attach', mnt, 'web')).trim()
  t.match(
    await must(t, 'losetup', '--list', '--noheadings', '--output', 'BACK-FILE,DIO', device),
    `${mnt}/web   1`,
  )
  t.equal(
    await done(t, 'attach', pool, 'web'),
    `${device}\n`,
    'a second device would have caches of its own',
  )
  await refused(t, 1, /can be written to; .* \(VOLUME_BUSY\)/, 'attach', pool, 'web', '--read-only')
  const outside = join(folder, 'outside')
  await writeFile(outside, Buffer.alloc(65536))
  for (const name of ['none', '../outside', '.', '..', outside, `${mnt}/web`, './web']) {
    const line = `thinfs: ${name}: no volume has the name`
    await refused(t, 1, line, 'attach', pool, name)
    await refused(t, 1, line, 'detach', pool, name)
    await refused(t, 1, line, 'snapshot', pool, name, 'x')
  }
  t.equal(await must(t, 'losetup', '--associated', outside), '', 'no name leads out of the mount')

  await must(t, 'mkfs.ext4', '-q', device)
  await must(t, 'mount', device, fs)
  await writeFile(join(fs, 'before'), 'before')
  await done(t, 'snapshot', mnt, 'web', 'torn')
  await done(t, 'snapshot', mnt, 'web', 'whole', '--freeze', fs)
  t.equal(await needsRecovery(t, join(mnt, 'torn')), true)
  t.equal(await needsRecovery(t, join(mnt, 'whole')), false)
  await refused(
    t,
    1,
    /torn: a volume has the name \(VOLUME_EXISTS\)/,
    'snapshot',
    mnt,
    'web',
    'torn',
    '--freeze',
    fs,
  )
  await must(t, 'timeout', '10', 'cp', join(fs, 'before'), join(fs, 'after'))
  await done(t, 'snapshot', mnt, 'web', 'found', '--freeze')
  t.equal(await needsRecovery(t, join(mnt, 'found')), false)
  await refused(t, 2, /the pool has files on it/, 'snapshot', mnt, 'web', 'x', '--freeze', pool)
  const none = '--freeze /none: no such folder (BAD_ARGUMENT)'
  await refused(t, 2, none, 'snapshot', mnt, 'web', 'x', '--freeze', '/none')
  await refused(
    t,
    2,
    `/proc: its filesystem is proc (proc), not on web, whose is at ${fs} (BAD_ARGUMENT)`,
    'snapshot',
    mnt,
    'web',
    'x',
    '--freeze',
    '/proc',
  )

  await refused(t, 1, `web: ${device} is mounted at ${fs} (VOLUME_BUSY)`, 'detach', mnt, 'web')
  await refused(t, 1, `held by ${device} (mounted at ${fs}) (MOUNT_BUSY)`, 'umount', mnt)
  await refused(t, 1, /web: it is open, by .* \(VOLUME_BUSY\)/, 'remove', mnt, 'web', '--yes')
  await refused(t, 1, `at ${mnt} (POOL_IN_USE)`, 'mount', pool, fs)
  await must(t, 'umount', fs)
  t.strictSame(JSON.parse(await done(t, 'detach', mnt, 'web', '--json')), { detached: [device] })
  await refused(t, 1, /web: no loop device is attached/, 'detach', mnt, 'web')
  t.match(await done(t, 'check', mnt), /^4 devices, /)
  t.match(await done(t, 'status', mnt), new RegExp(`^mounted +${mnt}, process \\d+$`, 'm'))

  t.equal(await done(t, 'umount', mnt), '')
  await must(t, 'thin_check', join(pool, 'metadata'))
  await refused(t, 1, /the pool is not mounted; .* \(NOT_MOUNTED\)/, 'umount', pool)
})

t.test('a read-only mount and a read-only device', async t => {
  const { pool, mnt } = await mountedPool(t)
  const device = (await done(t, 'attach', mnt, 'web', '--read-only')).trim()
  t.equal((await must(t, 'blockdev', '--getro', device)).trim(), '1')
  await done(t, 'detach', pool, 'web')
  await done(t, 'umount', pool)
  await done(t, 'mount', pool, mnt, '-o', 'ro')
  await refused(t, 1, /\(POOL_READ_ONLY\)/, 'create', mnt, 'x', '--size', '1G')

  const file = join(pool, 'pool.yaml')
  const yaml = await readFile(file)
  await writeFile(file, 'pool: [')
  t.match(await done(t, 'list', pool), /^web /m, 'a mounted pool does without its pool.yaml')
  await writeFile(file, yaml)
  await done(t, 'umount', pool)
  await refused(t, 2, /nosuch is not one of/, 'mount', pool, mnt, '-o', 'ro,nosuch')
})

t.test('a command that waits for a process that was stopped says so', async t => {
  const { pool, mnt } = await mountedPool(t)
  const { mount } = JSON.parse(await done(t, 'status', pool, '--json'))
  for (const [pid, args] of [
    [mount.enginePid, ['list', pool]],
    [mount.pid, ['restart', pool]],
    [mount.pid, ['mount', pool, mnt]],
  ] as const) {
    process.kill(pid, 'SIGSTOP')
    const command = spawn(process.execPath, [PROGRAM, ...args])
    const closed = once(command, 'close')
    const [line] = await once(command.stderr.setEncoding('utf8'), 'data')
    const told = `^thinfs: waiting for process ${pid} .*, stopped by a signal; kill -CONT ${pid} `
    t.match(line, new RegExp(told), args.join(' '))
    process.kill(pid, 'SIGCONT')
    t.same(await closed, [args[0] === 'mount' ? 1 : 0, null], 'it goes on')
  }
})

t.test('a snapshot has what a program changed in a memory map of the volume', async t => {
  const { mnt } = await mountedPool(t)
  const program = `import mmap, sys
file = open(sys.argv[1], 'r+b')
memory = mmap.mmap(file.fileno(), 4096)
memory[0:6] = b'mapped'
print('dirty', flush=True)
sys.stdin.read()`
  const python = spawn('python3', ['-c', program, join(mnt, 'web')])
  await once(python.stdout, 'data')
  await done(t, 'snapshot', mnt, 'web', 'copy')
  const copy = await open(join(mnt, 'copy'))
  const { buffer } = await copy.read(Buffer.alloc(6), 0, 6, 0)
  await copy.close()
  t.equal(buffer.toString(), 'mapped')
  await ended(python)
})

t.test('a filesystem thaws when the command that froze it is killed', async t => {
  const { mnt, fs } = await mountedPool(t)
  const device = (await done(t, 'attach', mnt, 'web')).trim()
  await must(t, 'mkfs.ext4', '-q', device)
  await must(t, 'mount', device, fs)
  const program = `import { whileFrozen } from ${JSON.stringify(FREEZE)}
await whileFrozen(${JSON.stringify(fs)}, () => { console.log('frozen'); return new Promise(() => {}) })`
  const command = spawn(process.execPath, [
    ...process.execArgv,
    '--input-type=module',
    '-e',
    program,
  ])
  await once(command.stdout, 'data')
  // fsfreeze(8) itself says whether it is: a second freeze is refused.
  t.match(await run('fsfreeze', '-f', fs), { status: 1, stderr: /busy/i })
  command.kill('SIGKILL')
  await once(command, 'close')
  await must(t, 'timeout', '10', 'sh', '-c', 'echo alive > "$1/file"', 'sh', fs)
  t.equal(await readFile(join(fs, 'file'), 'utf8'), 'alive\n')
})

async function ended(child: ChildProcess): Promise<void> {
  const close = once(child, 'close')
  child.stdin!.end()
  await close
}

t.test('snapshots of several volumes are of one moment, while they are written to', async t => {
  const { pool, mnt } = await mountedPool(t)
  await done(t, 'create', pool, 'log', '--size', '64M')
  // What stands in `log` was in `web` before: never is it ahead, nor behind by more than one.
  const program = `import os, sys
web, log = (os.open(sys.argv[1] + '/' + name, os.O_WRONLY) for name in ('web', 'log'))
for n in range(1, 1 << 40):
    for fd in (web, log):
        os.pwrite(fd, n.to_bytes(8, 'big'), n % 16 * 65536)
        os.pwrite(fd, n.to_bytes(8, 'big'), 0)
    if n == 100: print('writes', flush=True)`
  const python = spawn('python3', ['-c', program, mnt])
  await once(python.stdout, 'data')
  const numberIn = async (name: string): Promise<number> => {
    const file = await open(join(mnt, name))
    const { buffer } = await file.read(Buffer.alloc(8), 0, 8, 0)
    await file.close()
    return Number(buffer.readBigUInt64BE())
  }
  try {
    for (const suffix of ['@1', '@2', '@3']) {
      const said = await done(t, 'snapshot', pool, 'web', 'log', '--suffix', suffix)
      t.match(said, new RegExp(`^web${suffix}: .*snapshot of web\\nlog${suffix}: .* of log\\n$`))
      const [web, log] = [await numberIn(`web${suffix}`), await numberIn(`log${suffix}`)]
      t.ok(web - log === 0 || web - log === 1, `${web} in web, ${log} in log`)
    }
  } finally {
    python.kill('SIGKILL')
    await once(python, 'close')
  }
  await refused(t, 2, /more than one NAME: .*--suffix/, 'snapshot', pool, 'web', 'log', 'x')
  await refused(t, 2, /NAME is missing/, 'snapshot', pool, 'web')

  // The kernel tells the engine of a close some time after it.
  const closed = async (): Promise<void> => {
    const isOpen = ({ name, open }: { name: string; open: boolean }) => name === 'web' && open
    while (JSON.parse(await done(t, 'list', pool, '--json')).some(isOpen));
  }
  await closed()
  const said = await done(t, 'rollback', pool, 'web', 'web@1')
  const [, kept] =
    /^web: as web@1; (web@before-rollback-\d{8}T\d{6}\.\d{3}Z) is what it was\n$/.exec(said)!
  t.equal(await numberIn('web'), await numberIn('web@1'))
  await closed()
  await done(t, 'rollback', pool, 'web', kept!, '--no-keep', '--yes')
  t.equal(await numberIn('web'), await numberIn(kept!))
  const file = await open(join(mnt, 'web'))
  await refused(t, 1, /web: it is open, by .* \(VOLUME_BUSY\)/, 'rollback', mnt, 'web', 'web@1')
  await file.close()
})
