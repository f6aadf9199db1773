/**
 * Goal: all that can be read of damaged metadata is saved, nothing else comes to be, and what is
 * lost is named. Method: images that the kernel and tools wrote, damaged at random; what comes of
 * them is judged by thin_check, and compared with the image's own dump and with what thin_repair
 * saves.
 */
import fc from 'fast-check'
import t from 'tap'
import { METADATA_BLOCK_SIZE, SECTOR_SIZE, ThinfsError } from '../../src/base/index.js'
import {
  checkMetadata,
  type PoolFacts,
  type RepairReport,
  repairMetadata,
} from '../../src/metadata/index.js'
import { Target } from '../support/damage.js'
import { MemoryStore } from '../support/memory-store.js'
import {
  fixture,
  fixtureXml,
  parseDump,
  type ThinDump,
  thinCheck,
  thinDump,
  thinRepair,
} from '../support/thin-tools.js'

const IMAGES = ['cow-snapshots', 'cow-grown', 'many-devs', 'golden-replay-2', 'snap-of-snap']

const storeOf = (image: Buffer): MemoryStore => new MemoryStore(image.length, { image })

function factsOf(wanted: ThinDump): PoolFacts {
  return {
    dataBlockSectors: wanted.dataBlockSize,
    dataSize: wanted.nrDataBlocks * wanted.dataBlockSize * SECTOR_SIZE,
    uuid: null,
    transactionId: wanted.transaction,
    devIds: new Set(wanted.devices.keys()),
  }
}

async function repaired(
  image: Buffer,
  facts: PoolFacts,
): Promise<{ image: Buffer; report: RepairReport }> {
  const target = new MemoryStore(image.length)
  const report = await repairMetadata(storeOf(image), target, facts, () => {})
  return { image: target.image, report }
}

/** `device:virtual block` → `data block:time`. */
function mappingsOf({ devices }: ThinDump): Map<string, string> {
  const all = new Map<string, string>()
  for (const [devId, { mappings }] of devices) {
    for (const [vblock, { dataBlock, time }] of mappings) {
      all.set(`${devId}:${vblock}`, `${dataBlock}:${time}`)
    }
  }
  return all
}

/** Whether a mapping is in a range that is named as lost. */
function isNamed(report: RepairReport, key: string): boolean {
  const [devId, vblock] = key.split(':').map(Number) as [number, number]
  const isIn = (at: number, { begin, end }: { begin: number; end: number }): boolean =>
    at >= begin && at < end
  return (
    report.lost.some(range => range.devId === devId && isIn(vblock, range)) ||
    report.lostDevices.some(range => isIn(devId, range))
  )
}

function mustBeSound(image: Buffer): void {
  const { problems } = checkMetadata(storeOf(image))
  const { status, stderr } = thinCheck(image)
  if (problems.length === 0 && status === 0) return
  throw new Error(`not sound: ${problems[0]?.message} ${stderr}`)
}

for (const name of IMAGES) {
  const image = fixture(name)
  const wanted = parseDump(fixtureXml(name))

  t.test(`${name}: without a superblock the newest trees are found`, async t => {
    const damaged = Buffer.from(image)
    damaged.fill(0xff, 0, METADATA_BLOCK_SIZE)
    const { image: made, report } = await repaired(damaged, factsOf(wanted))
    t.match(report, { searched: true, lost: [], lostDevices: [], withoutDetails: [] })
    mustBeSound(made)
    t.same(mappingsOf(thinDump(made)), mappingsOf(wanted))
    const options = [
      ...['--transaction-id', String(wanted.transaction)],
      ...['--data-block-size', String(wanted.dataBlockSize)],
      ...['--nr-data-blocks', String(wanted.nrDataBlocks)],
    ]
    t.ok(saves(damaged, options) <= mappingsOf(wanted).size, 'thin_repair has no more')
  })
}

for (const name of ['cow-snapshots', 'golden-replay-2', 'snap-of-snap']) {
  const image = fixture(name)
  const wanted = parseDump(fixtureXml(name))

  t.test(`${name}: whatever else is damaged`, async t => {
    const { blocks } = new Target(image)
    const all = mappingsOf(wanted)
    const damages = fc.array(
      fc.record({
        nr: fc.constantFrom(...blocks.filter(({ nr }) => nr > 0).map(({ nr }) => nr)),
        byte: fc.nat(4095),
      }),
      { minLength: 1, maxLength: 3 },
    )
    const tally = { more: 0, same: 0 }
    const property = fc.asyncProperty(damages, async damages => {
      const damaged = Buffer.from(image)
      for (const { nr, byte } of damages) damaged[nr * METADATA_BLOCK_SIZE + byte]! ^= 0x10
      const bySomebodyElse = saves(damaged, [])
      const repair = await repaired(damaged, factsOf(wanted)).catch((err: ThinfsError) => err)
      if (repair instanceof ThinfsError) {
        if (repair.code === 'METADATA_CORRUPT' && bySomebodyElse === 0) return
        throw repair
      }
      const { image: made, report } = repair
      mustBeSound(made)
      const saved = mappingsOf(thinDump(made))
      if (!report.searched) {
        for (const [key, value] of saved) {
          if (all.get(key) !== value) throw new Error(`${key} was ${all.get(key)}, is ${value}`)
        }
        for (const key of all.keys()) {
          if (!saved.has(key) && !isNamed(report, key)) throw new Error(`${key}: not named`)
        }
      }
      if (bySomebodyElse < saved.size) tally.more++
      else if (bySomebodyElse === saved.size) tally.same++
      else throw new Error(`thin_repair saves ${bySomebodyElse} mappings, this ${saved.size}`)
    })
    await fc.assert(property, { numRuns: 8 })
    t.comment(`as many as thin_repair saves: ${tally.same}, more: ${tally.more}`)
  })
}

/** How many mappings thin_repair saves; 0 also where it fails. */
function saves(image: Buffer, options: string[]): number {
  try {
    return mappingsOf(thinDump(thinRepair(image, options))).size
  } catch {
    return 0
  }
}

t.test('where no tree is left, nothing is made', async t => {
  const image = Buffer.alloc(1 << 20, 0x55)
  const facts = { ...factsOf(parseDump(fixtureXml('one-thin'))), devIds: null }
  await t.rejects(repaired(image, facts), { code: 'METADATA_CORRUPT', message: /no tree/ })
})
