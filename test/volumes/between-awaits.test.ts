// Goal: between two awaits of a command a volume may be opened, removed, written to or resized, and
// what the command does then is still right. Method: volumes on a pool in memory whose volumes.json
// is replaced only when the test says so.
import t from 'tap'
import { bytes, cancelled, type DevId } from '../../src/base/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { checkMetadata } from '../../src/metadata/index.js'
import type { PoolOptions } from '../../src/pool/index.js'
import type { Volume, Volumes } from '../../src/volumes/index.js'
import type { TableFile } from '../../src/volumes/volume-table.js'
import { openFiles } from '../support/memory-pool.js'
import { BLOCK, byteAt, files, filled, turn } from '../support/thin-devices.js'
import { openTable } from '../support/volumes-on-disk.js'

/** volumes.json in memory. While it is held, a change of it waits. */
class HeldTable implements TableFile {
  readonly path = 'volumes.json'
  content: string | null = null
  #release: (() => void) | null = null
  #held: Promise<void> = Promise.resolve()

  read(): string | null {
    return this.content
  }

  async replace(content: Uint8Array): Promise<void> {
    await this.#held
    this.content = Buffer.from(content).toString()
  }

  hold(): void {
    this.#held = new Promise(resolve => {
      this.#release = resolve
    })
  }

  release(): void {
    this.#release?.()
  }
}

async function opened(dataBlocks = 16, options: Partial<PoolOptions> = {}) {
  const memory = files(dataBlocks)
  const { pool, clock } = await openFiles(memory, options)
  const table = new HeldTable()
  const volumes = openTable(pool, memory.metadata, table)
  return { memory, pool, clock, table, volumes, fs: new VolumeFs(volumes, { uid: 0, gid: 0 }, 0) }
}

const inode = (volume: Volume): number => volume.devId + 2

async function make(volumes: Volumes, name: string, blocks: number, value?: number) {
  const volume = await volumes.newVolumes.make(name, blocks * BLOCK)
  const size = blocks * BLOCK
  if (value !== undefined) await volume.device.write(0, size, filled(size, value), 0)
  return volume
}

t.test('a volume cannot be opened once its removal has begun', async t => {
  const removals: [string, (volumes: Volumes) => Promise<void>][] = [
    ['remove', volumes => volumes.remove({ names: ['a'] })],
    ['message delete', volumes => volumes.message({ message: 'delete 0' })],
    ['unlink', volumes => volumes.namespace.unlink('a')],
  ]
  for (const [what, remove] of removals) {
    const { table, volumes } = await opened()
    const volume = await make(volumes, 'a', 2, 1)
    table.hold()
    const removing = remove(volumes)
    await turn()
    t.throws(
      () => volumes.opened(volume, 7),
      { code: 'VOLUME_MISSING' },
      `${what}: an open meanwhile`,
    )
    t.equal(volumes.find('a'), undefined, `${what}: nor is the name found`)
    table.release()
    await removing
  }
})

t.test('a removal that fails gives the name back', async t => {
  const { table, volumes } = await opened()
  const volume = await make(volumes, 'a', 2, 1)
  table.replace = async () => {
    throw Object.assign(new Error('full'), { code: 'ENOSPC' })
  }
  await t.rejects(volumes.remove({ names: ['a'] }), { code: 'IO_ERROR', errno: 'ENOSPC' })
  t.equal(volumes.find('a'), volume)
  t.doesNotThrow(() => volumes.opened(volume, 7))
  t.equal(byteAt(volume.device, 0), 1)
})

t.test('a volume on its way out is not deleted a second time', async t => {
  const { volumes, clock, pool, memory } = await opened()
  await make(volumes, 'a', 2, 1)
  let inTheMiddle = (): void => {}
  const reached = new Promise<void>(resolve => {
    inTheMiddle = resolve
  })
  clock.yield = async () => inTheMiddle()
  const removing = volumes.remove({ names: ['a'] })
  await Promise.race([reached, removing])
  await t.rejects(volumes.message({ message: 'delete 0' }), { code: 'DEVICE_MISSING' })
  await removing
  await pool.commit()
  t.same(checkMetadata(memory.metadata).problems, [])
})

t.test('a pool that is full', async t => {
  // The end lies in a block that a snapshot shares: to zero its rest takes a new one.
  const END = BLOCK / 2

  async function full() {
    const all = await opened(8, { onFull: 'queue' })
    const { volumes, memory, clock } = all
    await make(volumes, 's', 2, 1)
    await volumes.snapshot({ origin: 's', name: 'kept' })
    await make(volumes, 'a', 6, 2)
    await volumes.commit()
    const grow = async (): Promise<void> => {
      memory.data.grow(bytes(16 * BLOCK))
      clock.advance(1000)
      await turn()
    }
    const isKept = (): boolean => {
      const { device } = volumes.find('kept')!
      return [0, END, BLOCK, 2 * BLOCK - 1].every(at => byteAt(device, at) === 1)
    }
    return { ...all, grow, isKept }
  }

  /** The same with the end in the shared block, so that a growth has to wait. */
  async function waiting() {
    const all = await full()
    await all.volumes.resize({ name: 's', size: END, shrink: true })
    return all
  }

  await t.test('a shrink takes no block, and waits for none', async t => {
    const { volumes, pool, memory, grow, isKept } = await full()
    const before = pool.metadata.nrAllocatedDataBlocks
    const request = { name: 's', size: END, shrink: true }
    t.equal((await volumes.resize(request)).size, END)
    t.equal(pool.metadata.nrAllocatedDataBlocks, before)
    t.ok(isKept())
    const growing = volumes.resize({ name: 's', size: 4 * BLOCK })
    await turn()
    await grow()
    t.equal((await growing).size, 4 * BLOCK)
    const { device } = volumes.find('s')!
    t.same(
      [0, END - 1, END, BLOCK - 1, BLOCK].map(at => byteAt(device, at)),
      [1, 1, 0, 0, 0],
    )
    t.ok(isKept(), 'the snapshot keeps its bytes')
    await volumes.commit()
    t.same(checkMetadata(memory.metadata).problems, [])
  })

  await t.test('a shrink whose caller goes away is done whole or not at all', async t => {
    const { volumes, pool, isKept } = await full()
    const { device } = volumes.find('s')!
    const request = { name: 's', size: END, shrink: true }
    await t.rejects(volumes.resize(request, AbortSignal.abort(cancelled())), { code: 'CANCELLED' })
    t.equal(device.size, 2 * BLOCK)
    t.equal(byteAt(device, BLOCK), 1, 'not begun')

    // The discard does not end with its first piece.
    const caller = new AbortController()
    const { discard } = device
    let begun = false
    device.discard = (...args) => {
      const work = discard.apply(device, args)
      if (begun) return work
      begun = true
      caller.abort(cancelled())
      return turn()
    }
    t.equal((await volumes.resize(request, caller.signal)).size, END)
    t.ok(begun)
    t.equal(pool.metadata.details(device.devId).mappedBlocks, 1)
    t.ok(isKept())
  })

  await t.test('a growth that waits does not touch the next volume of the device id', async t => {
    const { volumes, grow } = await waiting()
    const volume = volumes.find('s')!
    const growing = volumes.sizes.set(volume, 4 * BLOCK)
    await turn()
    await volumes.namespace.unlink('s')
    await t.rejects(growing, { code: 'DEVICE_MISSING' })
    await volumes.snapshot({ origin: 'a', name: 't', devId: volume.devId })
    await grow()
    const next = volumes.find('t')!
    t.equal(next.device.size, 6 * BLOCK)
    for (let block = 0; block < 6; block++) t.equal(byteAt(next.device, block * BLOCK), 2)
  })

  await t.test('a growth that waits keeps nobody from using or removing the volume', async t => {
    const { volumes } = await waiting()
    const volume = volumes.find('s')!
    const growing = volumes.resize({ name: 's', size: 4 * BLOCK })
    await turn()
    volumes.opened(volume, 7)
    t.equal(byteAt(volume.device, 0), 1)
    volumes.released(volume, 7)
    await Promise.all([
      t.rejects(growing, { code: 'DEVICE_MISSING' }),
      volumes.remove({ names: ['s'] }),
    ])
  })

  await t.test('a growth that waits is over before a later change of the size begins', async t => {
    const { volumes, grow } = await waiting()
    const order: string[] = []
    const growing = volumes.resize({ name: 's', size: 4 * BLOCK }).then(info => {
      order.push('growth')
      return info
    })
    const request = { name: 's', size: 512, shrink: true }
    const shrinking = volumes.resize(request).then(info => {
      order.push('shrink')
      return info
    })
    await turn()
    t.same(order, [])
    await grow()
    t.equal((await growing).size, 4 * BLOCK)
    t.equal((await shrinking).size, 512)
    t.same(order, ['growth', 'shrink'])
  })

  await t.test('a growth that was given up is not carried out later', async t => {
    const { volumes, grow } = await waiting()
    const caller = new AbortController()
    const growing = volumes.resize({ name: 's', size: 4 * BLOCK }, caller.signal)
    const behind = new AbortController()
    const second = volumes.resize({ name: 's', size: 6 * BLOCK }, behind.signal)
    await turn()
    const ended = Promise.all([
      t.rejects(growing, { code: 'CANCELLED' }),
      t.rejects(second, { code: 'CANCELLED' }, 'nor is one that waited for its turn'),
    ])
    behind.abort(cancelled())
    caller.abort(cancelled())
    await ended
    await grow()
    const { device } = volumes.find('s')!
    t.equal(device.size, END)
    t.equal(byteAt(device, 0), 1)
    t.equal((await volumes.resize({ name: 's', size: 3 * BLOCK })).size, 3 * BLOCK)
    t.equal(byteAt(device, END), 0, 'what was cut off is zeros')
  })
})

t.test('a growth that waits for its turn cuts nothing off that a writer appends', async t => {
  const { volumes, fs, table } = await opened()
  const volume = await make(volumes, 'a', 1, 1)
  table.hold()
  const before = volumes.create({ name: 'b', size: BLOCK })
  const growing = volumes.resize({ name: 'a', size: 2 * BLOCK })
  await turn()
  await fs.write(inode(volume), 0, 4 * BLOCK, filled(4 * BLOCK, 2), 0)
  table.release()
  await before
  await t.rejects(growing, { code: 'VOLUME_BUSY' })
  t.equal(volume.device.size, 4 * BLOCK)
  t.equal(byteAt(volume.device, 3 * BLOCK), 2)
  t.equal((await volumes.resize({ name: 'a', size: 5 * BLOCK })).size, 5 * BLOCK)
  t.equal(byteAt(volume.device, 3 * BLOCK), 2)
})

t.test('resize to a smaller size', async t => {
  const { volumes } = await opened()
  const volume = await make(volumes, 'a', 4)
  await volume.device.write(0, 2 * BLOCK, filled(2 * BLOCK, 1), 0)
  await t.test('is refused where data would be lost', async t => {
    await t.rejects(volumes.resize({ name: 'a', size: BLOCK }), {
      code: 'HAS_DATA',
      message: /--shrink/,
    })
    t.equal(volume.device.size, 4 * BLOCK)
    t.equal(byteAt(volume.device, BLOCK), 1)
  })
  await t.test('is refused without leave, as by qemu-img, where nothing is there', async t => {
    const request = { name: 'a', size: 3 * BLOCK }
    await t.rejects(volumes.resize(request), { code: 'BAD_ARGUMENT', message: /--shrink/ })
    t.equal((await volumes.resize({ ...request, shrink: true })).size, 3 * BLOCK)
  })
  await t.test('is refused while the volume is open, whatever is asked for', async t => {
    volumes.opened(volume, 7)
    const request = { name: 'a', size: BLOCK, shrink: true }
    await t.rejects(volumes.resize(request), { code: 'VOLUME_BUSY' })
    t.equal((await volumes.resize({ name: 'a', size: 5 * BLOCK })).size, 5 * BLOCK, 'not so growth')
    volumes.released(volume, 7)
    t.equal((await volumes.resize(request)).size, BLOCK)
  })
})

t.test('what a volume grows over reads as zeros', async t => {
  await t.test('where a snapshot was taken while a write made its origin longer', async t => {
    const { table, volumes, fs } = await opened()
    const origin = await make(volumes, 'a', 1, 1)
    table.hold()
    const snapshot = volumes.snapshot({ origin: 'a', name: 's' })
    await turn()
    await fs.write(inode(origin), BLOCK, BLOCK, filled(BLOCK, 2), 0)
    table.release()
    t.equal((await snapshot).size, BLOCK)
    await volumes.resize({ name: 's', size: 2 * BLOCK })
    t.equal(byteAt(volumes.find('s')!.device, BLOCK), 0)
    t.equal(byteAt(origin.device, BLOCK), 2, 'the origin has what was written')
  })

  await t.test('where the process died between a write past the end and the new size', async t => {
    for (const grow of ['resize', 'write', 'fallocate'] as const) {
      const { memory, pool, table, volumes } = await opened()
      const size = BLOCK + 512
      const volume = await volumes.newVolumes.make('a', size)
      await volume.device.write(0, size, filled(size, 1), 0)
      // In the block of the end, and in a block behind it.
      await volume.device.write(size, 512, filled(512, 2), 0)
      await volume.device.write(3 * BLOCK, 512, filled(512, 3), 0)
      await pool.settle()
      const next = await openFiles({ ...memory, journal: memory.journal.copy() })
      const again = openTable(next.pool, memory.metadata, table)
      const fs = new VolumeFs(again, { uid: 0, gid: 0 }, 0)
      const found = again.find('a')!
      t.equal(found.device.size, size)
      const ino = inode(found)
      if (grow === 'resize') await again.resize({ name: 'a', size: 5 * BLOCK })
      else if (grow === 'write') await fs.write(ino, 5 * BLOCK, 512, filled(512, 4), 0)
      else await fs.fallocate(ino, 0, 0, 5 * BLOCK)
      t.equal(byteAt(found.device, size - 1), 1, `${grow}: what was before the end stays`)
      t.equal(byteAt(found.device, size), 0, `${grow}: in the block of the end`)
      t.equal(byteAt(found.device, 3 * BLOCK), 0, `${grow}: behind it`)
    }
  })

  await t.test('and growing a snapshot takes no block for an edge of zeros', async t => {
    const { volumes, pool } = await opened(2)
    const origin = await volumes.newVolumes.make('a', BLOCK + 512)
    await origin.device.write(0, BLOCK + 512, filled(BLOCK + 512, 1), 0)
    await volumes.snapshot({ origin: 'a', name: 's' })
    t.equal((await volumes.resize({ name: 's', size: 4 * BLOCK })).size, 4 * BLOCK)
    t.equal(pool.metadata.nrAllocatedDataBlocks, 2)
  })
})

t.test('the message create_snap makes a volume like its origin', async t => {
  const { volumes, table, memory, pool } = await opened()
  const origin = await make(volumes, 'web', 8)
  await origin.device.write(0, BLOCK, filled(BLOCK, 1), 0)
  await volumes.message({ message: `create_snap 5 ${origin.devId}` })
  const [info] = (await volumes.list()).filter(({ devId }) => devId === 5)
  t.match(info, { name: 'thin-5', size: 8 * BLOCK, origin: 'web', created: 0 })
  await volumes.message({ message: 'create_snap 6 5' })
  t.equal(volumes.byDevId(6)?.device.size, 8 * BLOCK, 'a snapshot of that one too')
  await volumes.close()
  const again = await openFiles(memory)
  const reopened = openTable(again.pool, memory.metadata, table)
  t.equal(reopened.find('thin-5')?.device.size, 8 * BLOCK, 'it is as large after the next opening')
  t.equal(again.pool.metadata.details(5 as DevId).mappedBlocks, 1)
  t.same(checkMetadata(memory.metadata).problems, [])
  t.equal(pool.mode, 'write')
})
