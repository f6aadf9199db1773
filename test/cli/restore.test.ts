/** Metadata that is put in the place of a pool's, from a dump or from what was damaged. */
import {
  closeSync,
  copyFileSync,
  existsSync,
  openSync,
  readdirSync,
  readFileSync,
  statSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { loadConfig } from '../../src/config/index.js'
import { openPool, PoolFiles } from '../../src/volumes/index.js'
import { done, refused, run, thinfs } from './command-line.js'

/** A pool with a volume and a snapshot of it, and its dump. */
async function makePool(t: Test): Promise<{ pool: string; metadata: string; xml: string }> {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G', '--volume', 'web=10G')
  await done(t, 'snapshot', pool, 'web', 'copy')
  return { pool, metadata: join(pool, 'metadata'), xml: await done(t, 'dump', pool) }
}

function damage(path: string, block: number): void {
  const fd = openSync(path, 'r+')
  writeSync(fd, Buffer.alloc(4096, 0xaa), 0, 4096, block * 4096)
  closeSync(fd)
}

t.test('restore: what was dumped is there again, and what was there is kept', async t => {
  const { pool, metadata, xml } = await makePool(t)
  const before = await done(t, 'list', pool)
  const file = join(pool, 'dump.xml')
  writeFileSync(file, xml)
  const { mode } = statSync(metadata)
  await refused(
    t,
    1,
    /metadata: it has 2 devices; --force .*\(HAS_DATA\)/,
    'restore',
    pool,
    '-i',
    file,
  )
  const old = readFileSync(metadata)
  const said = await done(t, 'restore', pool, '-i', file, '--force')
  t.equal(said, `2 devices, 0 mappings; the metadata that was there is ${metadata}.old\n`)
  t.equal(readFileSync(`${metadata}.old`).equals(old), true)
  t.equal(statSync(metadata).mode, mode)
  t.equal((await run('thin_dump', metadata)).stdout, xml)
  t.equal((await run('thin_check', metadata)).status, 0)
  t.equal(await done(t, 'list', pool), before, 'names go with it, and the id of the pool')
  t.equal(JSON.parse(await done(t, 'check', pool, '--json')).problems.length, 0)

  await t.test('a new file of zeros is empty, and so is the metadata of a new pool', async t => {
    writeFileSync(metadata, Buffer.alloc(16 << 20))
    const pipe = await run(
      'sh',
      '-c',
      `${process.execPath} bin/thinfs.js restore ${pool} < ${file}`,
    )
    t.match(pipe, { status: 0, stderr: '' })
    t.equal((await run('thin_dump', metadata)).stdout, xml)
    t.ok(existsSync(`${metadata}.old.1`))
    await done(t, 'create', pool, 'more', '--size', '1G')
  })
})

t.test('restore: what is refused changes nothing', async t => {
  const { pool, metadata, xml } = await makePool(t)
  const file = join(pool, 'dump.xml')
  const before = [readFileSync(metadata), readdirSync(pool)] as const
  const same = (t: Test): void => {
    t.equal(readFileSync(metadata).equals(before[0]), true)
    t.strictSame(
      readdirSync(pool).filter(name => name !== 'dump.xml'),
      before[1],
    )
  }
  const cases: [text: string, line: RegExp][] = [
    [xml.slice(0, -20), /unclosed tag: device \(BAD_STREAM\)/],
    [xml.replace('"128"', '"256"'), /131072 bytes, the pool's have 65536 \(POOL_MISMATCH\)/],
    [xml.replace('"16384"', '"16385"'), /16385 data blocks, the data has 16384 \(POOL_MISMATCH\)/],
  ]
  for (const [text, line] of cases) {
    writeFileSync(file, text)
    await refused(t, 1, line, 'restore', pool, '-i', file, '--force')
    same(t)
  }
  await refused(t, 1, /none: no such file/, 'restore', pool, '-i', join(pool, 'none'), '--force')
  const files = PoolFiles.open(loadConfig(join(pool, 'pool.yaml')))
  try {
    await refused(t, 1, /\(POOL_IN_USE\)/, 'restore', pool, '-i', file, '--force')
    await refused(t, 1, /\(POOL_IN_USE\)/, 'repair', pool)
  } finally {
    files.close()
  }
  same(t)
})

t.test('restore: a dump older than the names is put in place, and what to do is said', async t => {
  const { pool, xml } = await makePool(t)
  await done(t, 'create', pool, 'later', '--size', '1G')
  await done(t, 'create', pool, 'last', '--size', '1G')
  const file = join(pool, 'dump.xml')
  writeFileSync(file, xml)
  const { status, stderr } = await thinfs('restore', pool, '-i', file, '--force')
  t.equal(status, 0)
  t.match(stderr, /^thinfs: before it is mounted to be written to: .*the metadata is older/m)
})

t.test('restore: what a dump of another pool does not know is not discarded', async t => {
  const { pool, metadata } = await makePool(t)
  const config = loadConfig(join(pool, 'pool.yaml'))
  const content = Buffer.alloc(4096, 'content')
  const open = await openPool(config)
  await open.volumes.find('web')!.device.write(0, 4096, content, 0)
  await open.close()
  // One that has seen more than this one.
  const file = join(pool, 'dump.xml')
  const sizes = 'version="2" data_block_size="128" nr_data_blocks="16384"'
  writeFileSync(
    file,
    `<superblock uuid="" time="9" transaction="900" flags="0" ${sizes}></superblock>`,
  )
  t.equal((await thinfs('restore', pool, '-i', file, '--force')).status, 0)
  const lost = /data block that it calls free hold data.*\(POOL_MISMATCH\)/
  await refused(t, 1, lost, 'create', pool, 'more', '--size', '1G')
  copyFileSync(`${metadata}.old`, metadata)
  const again = await openPool(config)
  const found = Buffer.alloc(4096)
  again.volumes.find('web')!.device.read(0, 4096, found, 0)
  await again.close()
  t.ok(found.equals(content), 'the old one put back')
})

t.test('repair', async t => {
  const { pool, metadata, xml } = await makePool(t)
  const list = await done(t, 'list', pool)
  const sound = readFileSync(metadata)
  t.match(await done(t, 'repair', pool), 'it is sound: nothing is changed')
  t.equal(readFileSync(metadata).equals(sound), true)

  damage(metadata, 0)
  const copy = `${metadata}.damaged`
  copyFileSync(metadata, copy)
  const said = await done(t, 'repair', pool)
  t.match(
    said,
    /^the superblock was damaged: .*\nthe trees were found by a search, .*\n2 devices, /,
  )
  t.equal(readFileSync(`${metadata}.old`).equals(readFileSync(copy)), true)
  t.equal((await run('thin_dump', metadata)).stdout, xml)
  t.equal(await done(t, 'list', pool), list)

  await t.test('names what is lost by the names of volumes', async t => {
    // The root of both devices: nothing is mapped, so a single leaf is all of either.
    const { devices } = await rootsOf(metadata)
    damage(metadata, devices.get(0)!)
    const report = JSON.parse(await done(t, 'repair', pool, '--json'))
    t.match(report, {
      repaired: true,
      searched: false,
      devices: 2,
      lost: [{ devId: 0 }, { devId: 1 }],
    })
    t.match(await done(t, 'repair', pool), 'it is sound')
  })

  await t.test('nothing is changed where nothing is found', async t => {
    writeFileSync(metadata, Buffer.alloc(1 << 20, 0x55))
    await refused(t, 1, /no tree of devices can be found.*\(METADATA_CORRUPT\)/, 'repair', pool)
    t.equal(readFileSync(metadata).equals(Buffer.alloc(1 << 20, 0x55)), true)
  })
})

/** The blocks of the devices' trees, by device id: docs/FORMAT.md. */
async function rootsOf(path: string): Promise<{ devices: Map<number, number> }> {
  const image = readFileSync(path)
  const leaf = Number(image.readBigUInt64LE(320)) * 4096
  const entries = Array.from(
    { length: image.readUInt32LE(leaf + 16) },
    (_, i): [number, number] => [
      Number(image.readBigUInt64LE(leaf + 32 + 8 * i)),
      Number(image.readBigUInt64LE(leaf + 2048 + 8 * i)),
    ],
  )
  return { devices: new Map(entries) }
}
