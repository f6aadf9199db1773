// Goal: devices of the tables' engine are disks for the kernel: filesystems and verified load on
// loop devices over them, with the engine killed meanwhile. Method: the engine's process on a mount
// of its own, loop devices over its files; what was written is compared, and thin_check judges the
// metadata.
import type { ChildProcess } from 'node:child_process'
import { once } from 'node:events'
import {
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  rmSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { createMessageConnection, IPCMessageReader, IPCMessageWriter } from 'vscode-jsonrpc/node'
import { MIB } from '../../src/base/index.js'
import { READY, spawnTableEngine, tableEngineClient } from '../../src/control/index.js'
import { DEV, type Negotiated } from '../../src/fuse/index.js'
import type { Extent, Target } from '../../src/tables/index.js'
import { LET_GO } from '../support/mount-namespace.js'
import { detachWithin, needs, python, run, until } from '../support/mounted-pool.js'
import { poolLine, thinLine } from '../support/tables.js'
import { thinCheck } from '../support/thin-tools.js'

type Client = ReturnType<typeof tableEngineClient>

/**
 * The engine's process, and what its service knows: tables, in the order in which they were made.
 */
class Served {
  readonly folder: string
  readonly mountPoint: string
  client!: Client
  readonly closed: number[] = []
  readonly #tables = new Map<number, Target[]>()
  readonly #fuse: number
  #child!: ChildProcess
  #negotiated: Negotiated | null = null

  private constructor(folder: string, fuse: number) {
    this.folder = folder
    this.mountPoint = join(folder, 'dev')
    this.#fuse = fuse
  }

  static async start(t: Test): Promise<Served> {
    const folder = mkdtempSync(join(tmpdir(), 'thinfs-tables-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    const mountPoint = join(folder, 'dev')
    mkdirSync(mountPoint)
    const options = { source: 'tables', subtype: 'thinfs-dm', allowOther: false, readOnly: false }
    const served = new Served(folder, await DEV.mount(mountPoint, options))
    t.teardown(() => served.#end())
    await served.#launch()
    return served
  }

  async #launch(): Promise<void> {
    const start = {
      negotiated: this.#negotiated,
      folder: this.folder,
      logLevel: 'error',
      logFile: null,
      foreground: false,
    }
    const child = spawnTableEngine(start, { fuse: this.#fuse })
    this.#child = child
    const connection = createMessageConnection(
      new IPCMessageReader(child),
      new IPCMessageWriter(child),
    )
    const ready = new Promise<void>(resolve => {
      connection.onNotification(READY, ({ negotiated }) => {
        this.#negotiated = negotiated
        resolve()
      })
    })
    this.client = tableEngineClient(connection, {
      event() {},
      closed: minor => void this.closed.push(minor),
    })
    child.once('close', () => connection.dispose())
    connection.listen()
    for (const [minor, table] of this.#tables) await this.#make(minor, table)
    await this.client.serve()
    await ready
  }

  async #make(minor: number, table: Target[]): Promise<void> {
    await this.client.create(minor)
    await this.client.load(minor, table, false)
    await this.client.resume(minor)
  }

  async make(minor: number, ...table: Target[]): Promise<string> {
    await this.#make(minor, table)
    this.#tables.set(minor, table)
    return join(this.mountPoint, `dm-${minor}`)
  }

  /** A loop device over a device of ours; detached in the end. */
  async attach(t: Test, path: string): Promise<string> {
    const loop = await run('losetup', '--find', '--show', '--direct-io=on', path)
    t.teardown(() => detachWithin(this.mountPoint))
    return loop
  }

  file(name: string, size: number): Extent {
    const path = join(this.folder, name)
    writeFileSync(path, '', { mode: 0o600 })
    truncateSync(path, size)
    return { path, offset: 0, length: size }
  }

  /** Kills the process; another one is told what this one knew. */
  async kill(): Promise<void> {
    const ended = once(this.#child, 'close')
    this.#child.kill('SIGKILL')
    await ended
    await this.#launch()
  }

  /** Removes all devices, uppermost first: closes the pools. */
  async removeAll(): Promise<void> {
    for (const minor of [...this.#tables.keys()].reverse()) await this.client.remove(minor)
    this.#tables.clear()
  }

  async #end(): Promise<void> {
    const ended = once(this.#child, 'close')
    await run('umount', '--lazy', this.mountPoint)
    closeSync(this.#fuse)
    const patience = setTimeout(() => this.#child.kill('SIGKILL'), 10_000)
    await ended
    clearTimeout(patience)
  }
}

const BLOCKS = 2 * 1024 * 128

/** A filesystem is filled, written to while its device is suspended, and given back to. */
const session = (loop: string): string => `${LET_GO}
let_go $PWD
await() { until [ -e $1 ]; do sleep 0.02; done; }
mkdir mounted; mount ${loop} mounted
head -c 20M /dev/urandom > mounted/a; cd mounted; sha256sum a > ../sum; cd ..; sync -f mounted
touch filled; await suspended
dd if=/dev/zero of=mounted/b bs=1M count=4 conv=fsync
touch written; await counted
rm mounted/b; sync -f mounted; fstrim mounted
umount mounted; mount ${loop} mounted
cd mounted; sha256sum -c ../sum; cd ..
umount mounted
`

t.test(
  'a filesystem on a linear device over a thin one',
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const served = await Served.start(t)
    const metadata = served.file('metadata', 4 * MIB)
    const data = served.file('data', 128 * MIB)
    await served.make(1, poolLine(metadata, data))
    t.equal(await served.client.message(1, 0, ['create_thin', '0']), null)
    await served.make(2, thinLine(1, 0, BLOCKS))
    const path = await served.make(3, {
      type: 'linear',
      start: 0,
      length: BLOCKS,
      source: { minor: 2, start: 0 },
    })
    const loop = await served.attach(t, path)
    await run('mkfs.ext4', '-q', loop)
    // Mounted where no other test's mount namespace copies the mount, and so holds the device.
    const namespace = ['-m', '--propagation', 'slave', 'env', '-C', served.folder]
    const using = run('unshare', ...namespace, 'sh', '-ec', session(loop))
    const happened = (what: string): Promise<void> =>
      Promise.race([until(() => existsSync(join(served.folder, what))), using.then(() => {})])
    const happens = (what: string): void => writeFileSync(join(served.folder, what), '')
    const usedBlocks = async (): Promise<number> =>
      Number.parseInt((await served.client.status(1, true))[0]!.split(' ')[2]!, 10)
    await happened('filled')
    await served.client.suspend(3, true)
    happens('suspended')
    await new Promise(resolve => setTimeout(resolve, 100))
    t.notOk(existsSync(join(served.folder, 'written')))
    await served.client.resume(3)
    await happened('written')
    const before = await usedBlocks()
    happens('counted')
    t.match(await using, /a: OK/)
    const after = await usedBlocks()
    t.ok(after < before, `${before} → ${after} blocks`)
    await run('e2fsck', '-fn', loop)
    await run('losetup', '--detach', loop)
    await until(() => served.closed.length > 0)
    t.same(served.closed, [3])
    await served.removeAll()
    t.equal(thinCheck(metadata.path).status, 0)
  },
)

/** Random writes, each read back, and all of them in the end. */
const load = (device: string): string => `
import mmap, os, random
random.seed(7)
size = 32 << 20
fd = os.open(${JSON.stringify(device)}, os.O_RDWR | os.O_DIRECT)
model = bytearray(size)
page = mmap.mmap(-1, 1 << 16)
for i in range(1500):
    length = 4096 * random.randrange(1, 17)
    offset = 4096 * random.randrange((size - length) // 4096)
    piece = random.randbytes(length)
    page[:length] = piece
    assert os.pwrite(fd, memoryview(page)[:length], offset) == length
    model[offset:offset + length] = piece
    if i % 16 == 0:
        os.fsync(fd)
        assert os.preadv(fd, [memoryview(page)[:length]], offset) == length
        assert page[:length] == piece, offset
for offset in range(0, size, 1 << 16):
    assert os.preadv(fd, [page], offset) == 1 << 16
    assert page[:] == model[offset:offset + (1 << 16)], offset
`

t.test(
  'kill -9 of the engine under load: no error, no wrong byte',
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const served = await Served.start(t)
    const metadata = served.file('metadata', 4 * MIB)
    const data = served.file('data', 128 * MIB)
    await served.make(1, poolLine(metadata, data))
    await served.client.message(1, 0, ['create_thin', '0'])
    const loop = await served.attach(t, await served.make(2, thinLine(1, 0, BLOCKS)))
    let ended = false
    const loading = python(served.folder, load(loop)).finally(() => {
      ended = true
    })
    let kills = 0
    while (!ended && kills < 3) {
      await new Promise(resolve => setTimeout(resolve, 300))
      await served.kill()
      kills++
      // What one process acknowledged, a snapshot by the next one has.
      if (kills === 2) await served.client.message(1, 0, ['create_snap', '1', '0'])
    }
    await loading
    t.ok(kills > 0)
    await run('losetup', '--detach', loop)
    await served.removeAll()
    t.equal(thinCheck(metadata.path).status, 0)
  },
)
