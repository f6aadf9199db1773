// Names, sizes and dm-thin's own words, on real files. What messages are answered with and what the
// status lines say is what Linux 6.1 (thin-pool 1.22.0) was seen to answer and print.
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { bytes, type DevId, MIB, ThinfsError } from '../../src/base/index.js'
import { ThinMetadata } from '../../src/metadata/index.js'
import { FileStore } from '../../src/storage/index.js'
import {
  checkPool,
  initPool,
  openPool,
  type Volume,
  type Volumes,
} from '../../src/volumes/index.js'
import { VolumeTable } from '../../src/volumes/volume-table.js'
import { filesLeft, makePool, poolConfig } from '../support/pool-files.js'
import { thinCheck, thinDump } from '../support/thin-tools.js'

const BLOCK = 64 * 1024
const filled = (length: number, value: number): Buffer => Buffer.alloc(length, value)

function byteAt(volume: Volume, offset: number): number {
  const found = Buffer.alloc(1)
  volume.device.read(offset, 1, found, 0)
  return found[0]!
}

/** As VolumeFs does it. */
async function write(volume: Volume, offset: number, size: number, value: number): Promise<void> {
  await volume.device.write(offset, size, filled(size, value), 0)
  volume.device.extend(offset + size)
}

const names = async (volumes: Volumes): Promise<string[]> =>
  (await volumes.list()).map(({ name }) => name)

t.test('messages are answered as the kernel answers them', async t => {
  const config = await makePool(t.testdir())
  const { volumes, close } = await openPool(config)
  const EINVAL = 'EINVAL'
  const cases: [message: string, errno: string | null][] = [
    ['create_thin 0', null],
    ['create_thin 0', 'EEXIST'],
    ['CREATE_Thin 1', null],
    ['create_thin 16777215', null],
    ['create_thin 16777216', EINVAL],
    ['create_thin -1', EINVAL],
    ['create_thin abc', EINVAL],
    ['create_thin 0x10', EINVAL],
    ['create_thin 5junk', EINVAL],
    ['create_thin 010', null],
    ['create_thin 10', 'EEXIST'],
    ['create_thin', EINVAL],
    ['create_thin 1 2', EINVAL],
    ['create_snap 2 0', null],
    ['create_snap 2 0', 'EEXIST'],
    ['create_snap 2 99', 'EEXIST'],
    ['create_snap 3 99', 'ENODATA'],
    ['create_snap 3', EINVAL],
    ['delete 99', 'ENODATA'],
    ['delete 2', null],
    ['delete 2', 'ENODATA'],
    ['delete', EINVAL],
    ['set_transaction_id 1 2', EINVAL],
    ['set_transaction_id 0 7', null],
    ['set_transaction_id 0 8', EINVAL],
    ['set_transaction_id 7 3', null],
    ['set_transaction_id 3', EINVAL],
    ['release_metadata_snap', EINVAL],
    ['reserve_metadata_snap', null],
    ['reserve_metadata_snap', 'EBUSY'],
    ['release_metadata_snap', null],
    ['bogus', EINVAL],
    ['', EINVAL],
  ]
  for (const [message, errno] of cases) {
    const found = await volumes.message({ message }).then(
      () => null,
      (err: ThinfsError) => err.errno,
    )
    t.equal(found, errno, `"${message}": ${errno ?? 'done'}`)
    // Each is committed before it returns.
    if (errno === null) t.equal(thinCheck(config.metadata.path).status, 0)
  }
  const dump = thinDump(config.metadata.path)
  t.same([...dump.devices.keys()], [0, 1, 10, 16777215])
  t.equal(dump.transaction, 3)

  await t.test('a device that is open is busy', async t => {
    const volume = volumes.byDevId(1)!
    volumes.opened(volume, 1)
    await t.rejects(volumes.message({ message: 'delete 1' }), { code: 'DEVICE_BUSY' })
    volumes.released(volume, 1)
    await volumes.message({ message: 'delete 1' })
    t.equal(volumes.byDevId(1), undefined)
  })
  await close()

  await t.test('all of them, unknown ones too, are refused while nothing may change', async t => {
    const readOnly = await openPool(config, { readOnly: true })
    for (const message of ['create_thin 5', 'delete 0', 'reserve_metadata_snap', 'bogus', '']) {
      await t.rejects(readOnly.volumes.message({ message }), { errno: 'EOPNOTSUPP' } as never)
    }
    await readOnly.close()
  })
})

t.test('status lines are what dmsetup prints', async t => {
  const lines = async (volumes: Volumes) => (await volumes.status()).dm
  await t.test('of a pool and its devices', async t => {
    const config = await makePool(t.testdir(), { onFull: 'queue' })
    const { volumes, close } = await openPool(config)
    const pool = async (): Promise<string> => (await lines(volumes)).pool
    const thin = async (): Promise<string> => (await lines(volumes)).volumes[0]!.line
    t.equal(
      await pool(),
      '0 131072 thin-pool 0 111/1024 0/1024 - rw discard_passdown queue_if_no_space - 256 ',
    )
    await volumes.message({ message: 'create_thin 0' })
    t.equal(await thin(), '0 0 thin 0 -')
    await volumes.sizes.set(volumes.byDevId(0)!, 64 * MIB)
    await volumes.message({ message: 'set_transaction_id 1 0' })
    t.equal(await thin(), '0 131072 thin 0 -')
    await write(volumes.byDevId(0)!, 0, 4 * BLOCK, 1)
    await volumes.commit()
    t.equal(
      await pool(),
      '0 131072 thin-pool 0 112/1024 4/1024 - rw discard_passdown queue_if_no_space - 256 ',
    )
    t.equal(await thin(), '0 131072 thin 512 511')
    // A device that ends in a part of a block.
    await volumes.sizes.set(volumes.byDevId(0)!, 1000 * 512)
    await write(volumes.byDevId(0)!, 0, 1000 * 512, 1)
    t.equal(await thin(), '0 1000 thin 1024 1023')
    await close()
  })
  await t.test('of what pool.yaml asks for', async t => {
    const cases = [
      ['ignore', 'queue', 'ignore_discard queue_if_no_space'],
      ['nopassdown', 'queue', 'no_discard_passdown queue_if_no_space'],
      ['passdown', 'error', 'discard_passdown error_if_no_space'],
    ] as const
    for (const [discards, onFull, words] of cases) {
      const config = await makePool(t.testdir(), { discards, onFull })
      const { volumes, close } = await openPool(config)
      t.equal(
        (await lines(volumes)).pool,
        `0 131072 thin-pool 0 111/1024 0/1024 - rw ${words} - 256 `,
      )
      await close()
      const readOnly = await openPool(config, { readOnly: true })
      t.match((await lines(readOnly.volumes)).pool, / ro /)
      await readOnly.close()
    }
  })
  await t.test('one bad tree spoils one line', async t => {
    const config = await makePool(t.testdir())
    const first = await openPool(config)
    await first.volumes.create({ name: 'a', size: MIB })
    await first.volumes.create({ name: 'b', size: MIB })
    await first.close()
    const { volumes, close } = await openPool(config)
    const { mappings } = volumes.pool.metadata
    const { highestMapped } = mappings
    mappings.highestMapped = devId => {
      if (devId === 0) throw new ThinfsError('METADATA_CORRUPT', 'a node')
      return highestMapped.call(mappings, devId)
    }
    t.same(
      (await lines(volumes)).volumes.map(({ line }) => line),
      ['0 2048 thin Error', '0 2048 thin 0 -'],
    )
    await close()
  })
})

t.test('a change is there after a power cut as a whole or not at all', async t => {
  const changes: Record<string, (volumes: Volumes) => Promise<unknown>> = {
    create: volumes => volumes.create({ name: 'new', size: MIB }),
    snapshot: volumes => volumes.snapshot({ origin: 'a', name: 'new' }),
    rename: volumes => volumes.rename({ from: 'a', to: 'new' }),
    'rename over another': volumes => volumes.namespace.renameOver('a', 'b', null),
    exchange: volumes => volumes.namespace.renameOver('a', 'b', '1:2'),
    resize: volumes => volumes.resize({ name: 'a', size: 2 * MIB }),
    remove: volumes => volumes.namespace.unlink('a'),
    chmod: volumes => volumes.setOwnership(volumes.find('a')!, { mode: 0o640, uid: 7 }),
  }
  const state = (volumes: Volumes) =>
    [...volumes.all()].map(({ entry }) => entry).sort((a, b) => (a.name < b.name ? -1 : 1))

  for (const [what, change] of Object.entries(changes)) {
    const config = await makePool(t.testdir())
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'a', size: MIB })
    await volumes.create({ name: 'b', size: MIB })
    const before = state(volumes)
    const metadata = readFileSync(config.metadata.path)
    const journal = readFileSync(join(config.folder, 'journal'))
    // Open: what is removed is not reclaimed yet, which would be a second change.
    for (const volume of volumes.all()) volumes.opened(volume, 1)
    await change(volumes)
    const after = state(volumes)
    t.notSame(after, before, what)

    // volumes.json got to the disk and the commit did not.
    const left = filesLeft(config)
    const half = await openPool(left)
    t.same(state(half.volumes), after, `${what}: committed`)
    await half.close()
    const cut = filesLeft(config, 'cut')
    writeFileSync(cut.metadata.path, metadata)
    writeFileSync(join(cut.folder, 'journal'), journal)
    t.same((await checkPool(cut)).problems, [], `${what}: what is half done is no damage`)
    const back = await openPool(cut)
    t.same(state(back.volumes), before, `${what}: taken back`)
    await back.volumes.create({ name: 'afterwards', size: MIB })
    await back.close()
    const again = await openPool(cut)
    t.same(
      await names(again.volumes),
      ['a', 'afterwards', 'b'],
      `${what}: the next change starts from what was taken back`,
    )
    await again.close()
    await close()
  }
})

t.test('removal', async t => {
  await t.test('that was cut short goes on with the next opening', async t => {
    const config = await makePool(t.testdir(), {
      dataBlockSize: 4096,
      data: { path: '', size: 256 * MIB },
      metadata: { path: '', size: 16 * MIB },
    })
    const { volumes, close } = await openPool(config)
    for (const name of ['by-name', 'by-message']) {
      await volumes.create({ name, size: 120 * MIB })
      await volumes.find(name)!.device.preallocate(0, 120 * MIB)
    }
    await volumes.commit()
    const used = volumes.pool.metadata.nrAllocatedDataBlocks
    t.equal(used, (2 * 120 * MIB) / 4096)
    const id = volumes.find('by-message')!.devId
    const removals = [
      volumes.remove({ names: ['by-name'] }),
      volumes.message({ message: `delete ${id}` }),
    ]
    while (volumes.pool.metadata.nrAllocatedDataBlocks === used) {
      await new Promise(resolve => setImmediate(resolve))
    }
    await close()
    await Promise.allSettled(removals)
    const left = thinDump(config.metadata.path)
    t.equal(left.devices.size, 2, 'neither was through')
    const again = await openPool(config)
    t.same(await names(again.volumes), [])
    while (again.volumes.byDevId(0) || again.volumes.byDevId(1)) {
      await new Promise(resolve => setImmediate(resolve))
    }
    await again.close()
    t.equal(thinDump(config.metadata.path).devices.size, 0)
    t.same((await checkPool(config)).problems, [])
  })

  await t.test(
    'of what is open waits for the last to close it, also in the next engine',
    async t => {
      const config = await makePool(t.testdir())
      const { volumes, close } = await openPool(config)
      await volumes.create({ name: 'a', size: MIB })
      const volume = volumes.find('a')!
      volumes.opened(volume, 1)
      volumes.opened(volume, 2)
      await write(volume, 0, BLOCK, 7)
      await t.rejects(volumes.remove({ names: ['a'] }), { code: 'VOLUME_BUSY' })
      await volumes.namespace.unlink('a')
      await volumes.pool.settle()
      const left = filesLeft(config)
      await close()

      const next = await openPool(left, { takesOver: true })
      const taken = next.volumes.byDevId(0)!
      t.equal(byteAt(taken, 0), 7, 'whoever has it open goes on reading')
      next.volumes.opened(taken, 2) // the request was sent again
      next.volumes.released(taken, 1)
      next.volumes.released(taken, 1)
      t.equal(next.volumes.byDevId(0), taken)
      next.volumes.released(taken, 2)
      next.volumes.released(taken, 2)
      t.throws(() => next.volumes.opened(taken, 3), { code: 'VOLUME_MISSING' })
      while (next.volumes.byDevId(0)) await new Promise(resolve => setImmediate(resolve))
      await next.close()
      t.equal(thinDump(left.metadata.path).devices.size, 0)
    },
  )

  await t.test('is refused for what was open before the engine died', async t => {
    const config = await makePool(t.testdir())
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'a', size: MIB })
    volumes.opened(volumes.find('a')!, 1)
    await volumes.pool.settle()
    const left = filesLeft(config)
    await close()
    const next = await openPool(left, { takesOver: true })
    await t.rejects(next.volumes.remove({ names: ['a'] }), { code: 'VOLUME_BUSY' })
    await t.rejects(next.volumes.message({ message: 'delete 0' }), { code: 'DEVICE_BUSY' })
    next.volumes.released(next.volumes.find('a')!, 1)
    await next.volumes.remove({ names: ['a'] })
    await next.close()
  })
})

t.test('sizes', async t => {
  await t.test('that writes made longer are kept by a commit and by an orderly end', async t => {
    for (const how of ['commit', 'end', 'end of a full pool'] as const) {
      const config = await makePool(t.testdir())
      const { volumes, close } = await openPool(config)
      await volumes.create({ name: 'a', size: 0 })
      await write(volumes.find('a')!, 0, 3000, 1)
      if (how === 'commit') await volumes.commit()
      if (how === 'end of a full pool') {
        await volumes.create({ name: 'b', size: 64 * MIB })
        await volumes.find('b')!.device.preallocate(0, 1023 * BLOCK)
        await t.rejects(write(volumes.find('a')!, 5 * BLOCK, 512, 1), { code: 'NO_DATA_SPACE' })
        t.equal(volumes.pool.mode, 'out_of_data_space')
      }
      const left = filesLeft(config)
      if (how !== 'commit') await close()
      const again = await openPool(how === 'commit' ? left : config)
      t.equal(again.volumes.find('a')!.device.size, 3000, how)
      await again.close()
      if (how === 'commit') await close()
    }
  })

  await t.test('that were cut do not come back with the next engine', async t => {
    const config = await makePool(t.testdir())
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'a', size: 0 })
    const volume = volumes.find('a')!
    await write(volume, 0, 3 * BLOCK, 1)
    await volumes.pool.settle()
    await volumes.sizes.set(volume, 1000)
    const left = filesLeft(config)
    await close()
    const next = await openPool(left, { takesOver: true })
    t.equal(next.volumes.find('a')!.device.size, 1000)
    await next.close()
  })

  await t.test('are any number of bytes for a file, whole sectors for a command', async t => {
    const config = await makePool(t.testdir())
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'a', size: 0 })
    await volumes.sizes.set(volumes.find('a')!, 1001)
    t.equal(volumes.find('a')!.device.size, 1001)
    await t.rejects(volumes.resize({ name: 'a', size: 1001 }), { code: 'BAD_ARGUMENT' })
    await t.rejects(volumes.create({ name: 'b', size: 1001 }), { code: 'BAD_ARGUMENT' })
    await t.rejects(volumes.create({ name: 'b', size: -512 }), { code: 'BAD_ARGUMENT' })
    await close()
  })

  await t.test('a cut gives back what was beyond it, whatever is written meanwhile', async t => {
    const config = await makePool(t.testdir(), { dataBlockSize: 4096 })
    const { volumes, close } = await openPool(config)
    // Longer than what is discarded at once.
    await volumes.create({ name: 'a', size: 2 ** 40 })
    const volume = volumes.find('a')!
    for (let i = 0; i < 8; i++) await write(volume, i * 2 ** 36 + 4096, 4096, i + 1)
    const cut = volumes.sizes.set(volume, 8192)
    let writes = 0
    while (volume.device.size > 8192) {
      await write(volume, 2 ** 36 + writes++ * 4096, 4096, 0xee)
      await new Promise(resolve => setImmediate(resolve))
    }
    await cut
    t.equal(volumes.pool.metadata.details(0 as DevId).mappedBlocks, 1)
    await volumes.sizes.set(volume, 2 ** 40)
    t.equal(byteAt(volume, 2 ** 36), 0)
    t.equal(byteAt(volume, 4096), 1)
    await close()
  })

  await t.test('a flush does not wait for a long cut of another volume', async t => {
    const config = await makePool(t.testdir(), { dataBlockSize: 4096 })
    const { volumes, close } = await openPool(config)
    await volumes.create({ name: 'long', size: 2 ** 40 })
    await volumes.create({ name: 'other', size: 0 })
    const long = volumes.find('long')!
    for (let i = 0; i < 200; i++) await write(long, i * 2 ** 32, 4096, 1)
    const order: string[] = []
    const cut = volumes.sizes.set(long, 0).then(() => order.push('cut'))
    await write(volumes.find('other')!, 0, 100, 1)
    await volumes.commit().then(() => order.push('flush'))
    await cut
    t.same(order, ['flush', 'cut'])
    await close()
  })
})

t.test('names', async t => {
  const config = await makePool(t.testdir())
  const { volumes, close } = await openPool(config)
  await volumes.create({ name: 'a', size: MIB })
  await volumes.message({ message: 'create_thin 7' })
  const cases: [string, () => Promise<unknown>, string][] = [
    ['taken', () => volumes.create({ name: 'a', size: 0 }), 'VOLUME_EXISTS'],
    ['taken, snapshot', () => volumes.snapshot({ origin: 'a', name: 'a' }), 'VOLUME_EXISTS'],
    ['taken, rename', () => volumes.rename({ from: 'a', to: 'thin-7' }), 'BAD_NAME'],
    ['of an unnamed device', () => volumes.create({ name: 'thin-9', size: 0 }), 'BAD_NAME'],
    ['with a slash', () => volumes.create({ name: 'a/b', size: 0 }), 'BAD_NAME'],
    ['too long', () => volumes.create({ name: 'é'.repeat(128), size: 0 }), 'BAD_NAME'],
    ['missing', () => volumes.rename({ from: 'nobody', to: 'b' }), 'VOLUME_MISSING'],
    [
      'missing, exchange',
      () => volumes.namespace.renameOver('a', 'nobody', '1:2'),
      'VOLUME_MISSING',
    ],
    ['id taken', () => volumes.create({ name: 'b', size: 0, devId: 7 }), 'DEVICE_EXISTS'],
    ['id too large', () => volumes.create({ name: 'b', size: 0, devId: 2 ** 24 }), 'BAD_ARGUMENT'],
  ]
  for (const [what, act, code] of cases) await t.rejects(act(), { code }, what)
  t.same(await names(volumes), ['a', 'thin-7'])
  await volumes.rename({ from: 'thin-7', to: 'named' })
  await volumes.create({ name: 'é'.repeat(127), size: 0 })
  await close()

  await t.test('an origin is one only for snapshots of it', async t => {
    const again = await openPool(config)
    await again.volumes.create({ name: 'origin', size: MIB, devId: 100 })
    await again.volumes.snapshot({ origin: 'origin', name: 'snap' })
    const snap = again.volumes.find('snap')!
    t.equal(again.volumes.infos.originOf(snap), 'origin')
    await again.volumes.remove({ names: ['origin'] })
    await again.volumes.create({ name: 'stranger', size: MIB, devId: 100 })
    t.equal(again.volumes.infos.originOf(snap), null)
    await again.close()
  })

  await t.test('that a device has from its id stay with it, and can be given up', async t => {
    const again = await openPool(config)
    await again.volumes.message({ message: 'create_thin 50' })
    await again.volumes.sizes.set(again.volumes.find('thin-50')!, MIB)
    await again.close()
    const next = await openPool({ ...config, volumes: { fifty: { size: 2 * MIB, id: 50 } } })
    t.notOk(next.volumes.find('thin-50'))
    t.equal(next.volumes.find('fifty')!.device.size, 2 * MIB)
    await next.volumes.remove({ names: ['fifty'] })
    await next.close()
  })

  await t.test('of devices that another program deleted are not for its next ones', async t => {
    const metadata = FileStore.open(config.metadata.path)
    const other = ThinMetadata.open(metadata)
    other.deleteDevice(7 as DevId)
    await other.seal()!.write()
    metadata.close()
    const again = await openPool(config)
    t.notOk((await names(again.volumes)).includes('named'))
    await again.volumes.message({ message: 'create_thin 7' })
    t.ok((await names(again.volumes)).includes('thin-7'))
    await again.close()
  })

  await t.test('that pool.yaml has are found, made and given', async t => {
    const wanted = {
      copy: { size: 2 * MIB, snapshotOf: 'base' },
      base: { size: MIB },
      foreign: { size: 3 * MIB, id: 7 },
    }
    const again = await openPool({ ...config, volumes: wanted }, { makeVolumes: true })
    const found = await again.volumes.list()
    const info = (name: string) => found.find(volume => volume.name === name)
    t.match(info('copy'), { size: 2 * MIB, origin: 'base' })
    t.match(info('foreign'), { size: 3 * MIB, devId: 7 })
    await again.volumes.remove({ names: ['copy'] })
    await again.close()
    const next = await openPool({ ...config, volumes: wanted }, { takesOver: true })
    t.notOk((await names(next.volumes)).includes('copy'), 'what was removed stays so')
    await next.close()
  })
})

t.test('a pool that cannot be opened as described is left as it was', async t => {
  const config = await makePool(t.testdir())
  const before = readFileSync(config.metadata.path)
  await t.rejects(openPool({ ...config, dataBlockSize: 2 * BLOCK }), {
    code: 'POOL_MISMATCH',
    message: /data blocks of 65536 bytes, .*pool.yaml says 131072/,
  })
  await t.rejects(openPool({ ...config, volumes: { a: { size: 1 } } }, { makeVolumes: true }), {
    code: 'BAD_ARGUMENT',
  })
  t.ok(readFileSync(config.metadata.path).equals(before))
  writeFileSync(join(config.folder, 'volumes.json'), '{"version": 1')
  await t.rejects(openPool(config), { code: 'POOL_MISMATCH', message: /volumes.json: not JSON/ })
  cpSync(config.metadata.path, join(config.folder, 'again'))
  t.ok(readFileSync(config.metadata.path).equals(before))
  t.equal(bytes(before.length), 4 * MIB)
})

t.test('volumes.json is the same text, whatever of it was encoded before', async t => {
  const file = { path: 'volumes.json', text: '' }
  const table = VolumeTable.load(
    {
      path: file.path,
      read: () => null,
      replace: async content => {
        file.text = Buffer.from(content).toString()
      },
    },
    { name: 'main', transactionId: 0, uuid: null },
  )
  const entry = (devId: number, name: string) => ({
    ...{ name, dev_id: devId, size: 4096, origin: null, created: 1.5, mode: 0o600, uid: 0, gid: 0 },
    removed: false,
  })
  const changes: Map<number, ReturnType<typeof entry> | null>[] = [
    new Map(),
    new Map([[1, entry(1, 'one')]]),
    new Map([
      [2, entry(2, 'tw"o\\')],
      [3, entry(3, 'three')],
    ]),
    new Map([[1, entry(1, 'another')]]),
    new Map([[3, null]]),
    new Map([[70_000, entry(70_000, 'far')]]),
    new Map([[300, entry(300, 'between')]]),
    new Map([[70_000, null]]),
  ]
  const names: string[][] = []
  for (const [i, change] of changes.entries()) {
    await table.change(change, i + 1)
    const parsed = JSON.parse(file.text) as { volumes: { name: string }[] }
    t.equal(file.text, `${JSON.stringify(parsed, null, 1)}\n`)
    names.push(parsed.volumes.map(({ name }) => name))
  }
  t.same(names, [
    [],
    ['one'],
    ['one', 'tw"o\\', 'three'],
    ['another', 'tw"o\\', 'three'],
    ['another', 'tw"o\\'],
    ['another', 'tw"o\\', 'far'],
    ['another', 'tw"o\\', 'far', 'between'],
    ['another', 'tw"o\\', 'between'],
  ])
})

t.test('two who make a pool at once: one makes it, the other removes nothing', async t => {
  const config = poolConfig(t.testdir(), { volumes: { a: { size: MIB } } })
  const ends = await Promise.allSettled([initPool(config), initPool(config), initPool(config)])
  t.same(ends.map(({ status }) => status).sort(), ['fulfilled', 'rejected', 'rejected'])
  for (const end of ends) {
    if (end.status === 'rejected') t.match(end.reason, { code: 'POOL_IN_USE' })
  }
  const { volumes, close } = await openPool(config)
  t.same(
    [...volumes.all()].map(({ name }) => name),
    ['a'],
  )
  await close()
  await t.rejects(initPool(config), { code: 'BAD_ARGUMENT' }, 'and nobody makes it again')
  t.same((await checkPool(config)).problems, [])
})
