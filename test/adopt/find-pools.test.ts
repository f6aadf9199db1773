// Goal: a pool that LVM or Docker made is found where it is, and what is damaged or out of reach is
// said, never guessed. Method: a disk that LVM on a real kernel made, and a folder that Docker made
// there, whole and changed; what LVM and the kernel said of them is what is wanted.
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  mkdirSync,
  openSync,
  readFileSync,
  truncateSync,
  writeFileSync,
  writeSync,
} from 'node:fs'
import { join } from 'node:path'
import { crc32 } from '@node-rs/crc32'
import t from 'tap'
import { findPools } from '../../src/adopt/index.js'
import { poolsOfGroup } from '../../src/adopt/lvm.js'
import { type LvmSection, parseLvmText } from '../../src/adopt/lvm-text.js'
import { readPhysicalVolume } from '../../src/adopt/physical-volume.js'
import { MIB, SECTOR_SIZE, ThinfsError } from '../../src/base/index.js'
import { dockerFolder, expectedOfLvm, lvmImage, scratch } from '../support/foreign-pools.js'
import { Random } from '../support/random.js'

const folder = scratch(t)
const image = join(folder, 'pv.img')
lvmImage(image)
const text = readPhysicalVolume(image, 0)!.text!

/** The tables that the kernel had, as extents. */
function tableOf(name: string, begin = 0): { offset: number; size: number }[] {
  const lines = expectedOfLvm()
    .get('table')!
    .filter(([of]) => of === `vg_docker-${name}:`)
  return lines.map(([, , sectors, , , first]) => ({
    offset: begin + Number(first) * SECTOR_SIZE,
    size: Number(sectors) * SECTOR_SIZE,
  }))
}

t.test("LVM's thin pool is where the kernel had it", async t => {
  const [pool, ...others] = await findPools(image)
  t.same(others, [])
  t.match(pool, { name: 'vg_docker/data', transactionId: 6, discards: 'passdown', notes: [] })
  t.same(pool!.metadata, { path: image, extents: tableOf('data_tmeta') })
  t.same(pool!.data, { path: image, extents: tableOf('data_tdata') })
  const sizes = expectedOfLvm()
    .get('lv')!
    .map(([name, size]) => [name, Number(size)])
  const found = Object.entries(pool!.volumes).map(([name, { size }]) => [name, size])
  t.same(new Map(found as [string, number][]), new Map(sizes as [string, number][]))
  t.equal(pool!.volumes['state-two']!.snapshotOf, 'base')
})

t.test('in a partition', async t => {
  const disk = join(folder, 'disk.img')
  writeFileSync(disk, '')
  truncateSync(disk, 520 * MIB)
  lvmImage(disk, 4 * MIB)
  const layout = 'label: gpt\nsize=2MiB\nstart=4MiB, size=512MiB, type=lvm\n'
  execFileSync('sfdisk', ['--quiet', disk], { input: layout, stdio: ['pipe', 'pipe', 'pipe'] })
  const [pool] = await findPools(disk)
  t.same(pool!.data.extents, tableOf('data_tdata', 4 * MIB))
})

t.test("Docker's devices have the names of its layers and containers", async t => {
  const docker = dockerFolder(folder)
  for (const source of [docker, join(docker, 'devicemapper')]) {
    const [pool] = await findPools(source)
    t.equal(pool!.data.path, join(docker, 'devicemapper/devicemapper/data'))
    t.equal(pool!.data.extents, null)
    t.equal(Object.keys(pool!.volumes).length, 10)
    t.match(pool!.volumes.base, { id: 1, size: 64 * MIB })
    // Each but the first is made of one that was there before.
    for (const [name, { id, snapshotOf }] of Object.entries(pool!.volumes)) {
      if (name !== 'base') t.ok(pool!.volumes[snapshotOf!]!.id! < id!, `${name} of ${snapshotOf}`)
    }
  }
  const device = join(docker, 'devicemapper/metadata/base')
  writeFileSync(device, '{"device_id":1}')
  await t.rejects(findPools(docker), { code: 'METADATA_CORRUPT', message: /metadata\/base: size/ })
  writeFileSync(device, 'nothing')
  await t.rejects(findPools(docker), { code: 'METADATA_CORRUPT', message: /base: not JSON/ })
})

t.test('what has no pool is refused, saying what it is', async t => {
  const plain = join(folder, 'plain')
  writeFileSync(plain, Buffer.alloc(MIB))
  const empty = join(folder, 'empty')
  mkdirSync(empty)
  const cases: [source: string, message: RegExp][] = [
    [plain, /no physical volume of LVM.*qemu-img convert/],
    [empty, /devicemapper\/data.*are not there/],
    [join(folder, 'missing'), /no such file or folder/],
  ]
  for (const [source, message] of cases) {
    await t.rejects(findPools(source), { code: 'NOT_A_POOL', message })
  }
})

t.test('damage shows in the checksums', async t => {
  const label = readFileSync(image).subarray(0, 4096)
  const header = 512 + label.readUInt32LE(512 + 20)
  t.equal(label.toString('latin1', 512, 520), 'LABELONE')
  t.equal(label.toString('latin1', header, header + 6), 'oTeKiS', 'as in expected.txt')
  const cases: [what: string, at: number, message: RegExp][] = [
    ['the label', header + 3, /label .* wrong checksum/],
    ['the area', 4096 + 41, /metadata area at 4096 .* wrong checksum/],
    ['its magic', 4096 + 9, /no metadata area at 4096/],
  ]
  for (const [what, at, message] of cases) {
    const copy = join(folder, 'damaged')
    copyFileSync(image, copy)
    writeSync(openSync(copy, 'r+'), Buffer.of(0xa5), 0, 1, at)
    t.throws(() => readPhysicalVolume(copy, 0), { code: 'METADATA_CORRUPT', message }, what)
  }
})

t.test('a ring of texts that goes on at its begin', async t => {
  const copy = join(folder, 'ring')
  copyFileSync(image, copy)
  const bytes = readFileSync(image).subarray(0, MIB)
  const start = 4096
  const size = Number(bytes.readBigUInt64LE(start + 32))
  const length = Number(bytes.readBigUInt64LE(start + 48))
  const before = bytes
    .subarray(start + Number(bytes.readBigUInt64LE(start + 40)))
    .subarray(0, length)
  const moved = Buffer.from(bytes.subarray(start, start + size))
  const at = size - 1000
  before.copy(moved, at, 0, 1000)
  before.copy(moved, 512, 1000)
  moved.writeBigUInt64LE(BigInt(at), 40)
  const sum = ~crc32(moved.subarray(4, 512), ~0xf597a6cf >>> 0) >>> 0
  moved.writeUInt32LE(sum, 0)
  writeSync(openSync(copy, 'r+'), moved, 0, size, start)
  t.equal(readPhysicalVolume(copy, 0)!.text, text)
})

t.test('what is not all in one linear piece here is refused, and named', async t => {
  const uuid = readPhysicalVolume(image, 0)!.uuid
  const pools = (changed: string) =>
    poolsOfGroup({ path: image, begin: 0 }, { uuid, text: changed })
  t.equal(pools(text).length, 1)
  const cases: [from: string | RegExp, to: string, message: RegExp][] = [
    ['"pv0", 40', '"pv1", 40', /data_tdata is on another physical volume/],
    ['"pv0", 40', '"pv0", 40,\n"pv1", 0', /data_tdata is striped over several/],
    [
      /(start_extent = 30\nextent_count = 12\n\ntype = )"striped"/,
      '$1"raid1"',
      /data_tdata is of type raid1/,
    ],
    ['pool = "data_tdata"', 'pool = "other"', /vg_docker\/other is missing/],
    ['pool = "data_tdata"', 'pool = 7', /pool is 7, where a name is wanted/],
    ['extent_size = 8192', 'extent_size = "8192"', /extent_size is 8192, where a number/],
  ]
  for (const [from, to, message] of cases) {
    const changed = text.replace(from, to)
    t.not(changed, text)
    t.throws(() => pools(changed), { message })
  }
  const external = text.replace('device_id = 2', 'device_id = 2\nexternal_origin = "root"')
  t.match(pools(external)[0]!.notes, [/app: what it has not written is in root/])
  t.throws(() => poolsOfGroup({ path: image, begin: 0 }, { uuid, text: null }), {
    code: 'NOT_SUPPORTED',
  })
})

t.test("LVM's text: as printed, it reads back; what is wrong has a line", async t => {
  const print = ({ values, sections }: LvmSection): string =>
    [...values].map(([key, value]) => `${key} = ${JSON.stringify(value)}\n`).join('') +
    [...sections].map(([name, section]) => `${name} {\n${print(section)}}\n`).join('')
  const parsed = parseLvmText(text)
  t.same(parseLvmText(print(parsed)), parsed)
  t.equal(parsed.values.get('contents'), 'Text Format Volume Group')
  t.equal(parseLvmText('a = "b\\"c\\\\" # }\n').values.get('a'), 'b"c\\')
  for (const [wrong, line] of [
    ['a {\n b = 1\n', 2],
    ['}', 1],
    ['a = 1\nb = [1 2]', 2],
    ['a = "x', 1],
    ['a', 1],
    ['a { '.repeat(40), 1],
  ] as const) {
    t.throws(() => parseLvmText(wrong), { message: new RegExp(`line ${line}: `) }, wrong)
  }
})

t.test('a text that was changed anywhere is read, or refused, at once', async t => {
  const random = new Random(7)
  const uuid = readPhysicalVolume(image, 0)!.uuid
  let refused = 0
  for (let i = 0; i < 300; i++) {
    const at = random.below(text.length)
    const length = random.below(40)
    const put = random.of([
      '',
      ' '.repeat(50_000),
      '{',
      '}',
      '"',
      '[',
      '#',
      '\0',
      '9'.repeat(400),
      '=',
    ])
    try {
      poolsOfGroup(
        { path: image, begin: 0 },
        { uuid, text: text.slice(0, at) + put + text.slice(at + length) },
      )
    } catch (err) {
      if (!(err instanceof ThinfsError)) throw err
      refused++
    }
  }
  t.ok(refused > 50, `${refused} of 300`)
})
