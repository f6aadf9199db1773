/**
 * The mount tables of all namespaces. The kernel makes the namespaces (unshare(1)), propagates, and
 * says afterwards which mounts an unmount took away.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t, { type Test } from 'tap'
import {
  goesWith,
  mountOf,
  mountOver,
  parseMountInfo,
  readMounts,
  readNamespaces,
} from '../../src/host/mount-table.js'
import { namespaceCommand } from '../support/mount-namespace.js'
import { needs } from '../support/mounted-pool.js'

const run = (program: string, ...args: string[]) => promisify(execFile)(program, args)

t.test('a line of mountinfo, with and without optional fields', async t => {
  const [plain, shared] = parseMountInfo(
    [
      '36 35 98:0 /mnt1 /mnt\\0402 rw,noatime - ext3 /dev/ro\\134ot rw,errors=continue',
      '37 36 0:64 / /a rw shared:7 master:1 propagate_from:2 - fuse.thinfs /p/pool.yaml rw',
    ].join('\n'),
  )
  t.match(plain, { id: 36, parentId: 35, device: '98:0', mountPoint: '/mnt 2' })
  t.match(plain, { source: '/dev/ro\\ot', peerGroup: null, masterGroup: null })
  t.match(shared, { device: '0:64', type: 'fuse.thinfs', peerGroup: 7, masterGroup: 1 })
})

t.test('the mount that has a path is the one over it that was made last', async t => {
  const text = ['1 0 0:1 / / rw - a a rw', '2 1 0:2 / /x rw - b b rw', '3 2 0:3 / /x rw - c c rw']
  const mounts = parseMountInfo(text.join('\n'))
  t.equal(mountOf('/x/y', mounts)!.id, 3)
  t.equal(mountOf('/xy', mounts)!.id, 1)
})

t.test('the mount that hides another is over it, or over a folder above it', async t => {
  const lines = [
    '1 0 0:1 / / rw - a a rw',
    '2 1 0:2 / /x/y rw - b b rw',
    '3 1 0:3 / /z rw - c c rw',
  ]
  const over = (line: string, of: number) => {
    const mounts = parseMountInfo([...lines, line].join('\n'))
    return mountOver(mounts.find(({ id }) => id === of)!, mounts)?.id ?? null
  }
  t.equal(over('4 2 0:4 / /x/y rw - d d rw', 2), 4, 'at the same place')
  t.equal(over('4 2 0:4 / /x/y rw - d d rw', 4), null)
  t.equal(over('4 2 0:4 / /x/y/w rw - d d rw', 2), null, 'below it')
  t.equal(over('4 1 0:4 / /x rw - d d rw', 2), 4, 'above it')
  t.equal(over('4 1 0:4 / /x rw - d d rw', 3), null, 'elsewhere')
  // In a root that is no mount point, which has no line.
  const inRoot = ['5 1 0:5 / /proc rw - p p rw', '6 1 0:6 / /mnt/thin rw - f f rw']
  const changed = (...more: string[]) => {
    const mounts = parseMountInfo([...inRoot, ...more].join('\n'))
    return mountOver(mounts.find(({ id }) => id === 6)!, mounts)?.id ?? null
  }
  t.equal(changed(), null)
  t.equal(changed('7 1 0:7 / /mnt rw - g g rw'), 7)
  t.equal(changed('7 6 0:7 / /mnt/thin rw - g g rw'), 7)
  t.equal(mountOver({ ...readMounts()[0]!, id: -1 }), null, 'one that has gone')
  await under(t)
})

/** As the kernel has it. */
async function under(t: Test): Promise<void> {
  const base = mkdtempSync(join(tmpdir(), 'thinfs-host-'))
  const inner = join(base, 'x', 'y')
  mkdirSync(inner, { recursive: true })
  t.teardown(async () => {
    await run('umount', '--recursive', '--lazy', base)
    rmSync(base, { recursive: true })
  })
  await run('mount', '-t', 'tmpfs', 'base', base)
  mkdirSync(inner, { recursive: true })
  for (const source of ['first', 'second']) await run('mount', '-t', 'tmpfs', source, inner)
  const [first, second] = readMounts().filter(({ mountPoint }) => mountPoint === inner)
  t.equal(mountOver(first!)?.source, 'second')
  t.equal(mountOver(second!), null)
  await run('mount', '-t', 'tmpfs', 'above', join(base, 'x'))
  for (const mount of [first, second]) t.equal(mountOver(mount!)?.source, 'above')
  await run('umount', join(base, 'x'))
}

/** A process in a mount namespace of its own, made now. */
async function inNamespace(
  t: Test,
  folder: string,
  propagation: 'private' | 'slave' | 'shared',
): Promise<ChildProcess> {
  const [program, ...args] = namespaceCommand(folder, propagation)
  const child = spawn(program, args, { stdio: ['ignore', 'pipe', 2] })
  t.teardown(() => child.kill('SIGKILL'))
  await once(child.stdout!, 'data')
  return child
}

t.test('an unmount goes where mounts are propagated to, and nowhere else', needs(), async t => {
  const base = mkdtempSync(join(tmpdir(), 'thinfs-host-'))
  const at = join(base, 'inner')
  t.teardown(async () => {
    await run('umount', '--recursive', '--lazy', base)
    rmSync(base, { recursive: true })
  })
  await run('mount', '-t', 'tmpfs', 'none', base)
  await run('mount', '--make-shared', base)
  mkdirSync(at)
  await run('mount', '-t', 'tmpfs', 'none', at)
  const children = {
    private: await inNamespace(t, base, 'private'),
    slave: await inNamespace(t, base, 'slave'),
    shared: await inNamespace(t, base, 'shared'),
  }
  const mount = readMounts().find(({ mountPoint }) => mountPoint === at)!
  const namespaces = readNamespaces()
  const predicted = Object.entries(children).map(([name, child]) => {
    const namespace = namespaces.find(({ pids }) => pids.includes(child.pid!))!
    const copy = namespace.mounts.find(({ mountPoint }) => mountPoint === at)!
    t.equal(copy.device, mount.device)
    return [name, goesWith(mount, copy, namespaces)]
  })
  await run('umount', at)
  const gone = Object.entries(children).map(([name, child]) => [
    name,
    !readFileSync(`/proc/${child.pid}/mountinfo`, 'utf8').includes(` ${at} `),
  ])
  t.same(predicted, gone)
  t.same(gone, [
    ['private', false],
    ['slave', true],
    ['shared', true],
  ])
})
