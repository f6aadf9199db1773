/** thin_dump's text, byte by byte: of images that the kernel and tools wrote, and of our own. */
import { spawnSync } from 'node:child_process'
import t from 'tap'
import { dumpHuman, dumpJson, dumpXml, heldRootOf, reverseMap } from '../../src/streams/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { fixture, fixtureFacts, fixtureXml, parseDump, withImage } from '../support/thin-tools.js'

const GOOD = Object.keys(fixtureFacts()).filter(name => !name.startsWith('corrupt-'))

const storeOf = (name: string): MemoryStore => {
  const image = fixture(name)
  return new MemoryStore(image.length, { image })
}

/** What the tool prints for people, of the metadata or by `-m` of the snapshot in it. */
const toolsText = (name: string, ...options: string[]): string =>
  withImage(fixture(name), path => {
    const args = ['-f', 'human_readable', ...options, path]
    const { status, stdout, stderr } = spawnSync('thin_dump', args, {
      encoding: 'utf8',
      maxBuffer: 1 << 30,
    })
    if (status !== 0) throw new Error(`thin_dump: ${status}: ${stderr}`)
    return stdout
  })

for (const name of GOOD) {
  t.test(name, async t => {
    const xml = [...dumpXml(storeOf(name), null)].join('')
    t.equal(xml === fixtureXml(name), true, 'as thin_dump')
    const human = [...dumpHuman(storeOf(name), null)].join('')
    t.equal(human === toolsText(name), true, 'as thin_dump -f human_readable')
    const { devices } = JSON.parse([...dumpJson(storeOf(name), null)].join(''))
    const runs = devices.flatMap(({ mappings }: { mappings: unknown[] }) => mappings)
    t.equal(devices.length, xml.match(/<device /g)?.length ?? 0)
    t.equal(runs.length, xml.match(/_mapping /g)?.length ?? 0)
  })
}

t.test('a metadata snapshot', async t => {
  const store = storeOf('cow-metadata-snap')
  const xml = [...dumpXml(store, heldRootOf(store))].join('')
  t.equal(xml === fixtureXml('cow-metadata-snap.held'), true, 'as thin_dump -m')
  const human = [...dumpHuman(store, heldRootOf(store))].join('')
  t.equal(human === toolsText('cow-metadata-snap', '-m'), true, 'as thin_dump -m, for people')
  t.throws(() => heldRootOf(storeOf('one-thin')), { code: 'SNAPSHOT_NOT_HELD' })
})

t.test('progress goes up to what there is', async t => {
  const [name] = GOOD.toSorted((a, b) => fixtureXml(b).length - fixtureXml(a).length)
  const all = [...fixtureXml(name!).matchAll(/mapped_blocks="(\d+)"/g)].reduce(
    (sum, [, mapped]) => sum + Number(mapped),
    0,
  )
  for (const dump of [dumpXml, dumpHuman, dumpJson]) {
    const reports: [done: number, all: number][] = []
    for (const _ of dump(storeOf(name!), null, (...report) => reports.push(report)));
    t.ok(reports.length > 0)
    t.ok(
      reports.every(
        ([done, of], i) => of === all && done <= of && done > (reports[i - 1]?.[0] ?? 0),
      ),
    )
  }
})

t.test('a damaged node is named', async t => {
  const dump = () => [...dumpXml(storeOf('corrupt-node-csum'), null)]
  t.throws(dump, { code: 'METADATA_CORRUPT', message: /metadata block \d+: .*checksum/ })
})

t.test(
  'reverse maps: as thin_rmap, and with the last run of a device, which that loses',
  async t => {
    for (const name of ['cow-grown', 'cow-snapshots']) {
      for (const [begin, end] of [
        [0, 20],
        [1590, 1700],
        [3, 4],
      ] as const) {
        const runs = reverseMap(storeOf(name), null, { begin, end })
        const lines = runs.map(run => {
          const thin = `${run.thinBegin}..${run.thinBegin + run.end - run.begin}`
          return `data ${run.begin}..${run.end} -> thin(${run.devId}) ${thin}`
        })
        const tool = withImage(fixture(name), path =>
          spawnSync('thin_rmap', ['--region', `${begin}..${end}`, path], { encoding: 'utf8' }),
        )
        const said = tool.stdout.trimEnd().split('\n')
        t.ok(said.length > 0)
        t.strictSame(
          said.filter(line => !lines.includes(line)),
          [],
          `${name}: ${begin}..${end}`,
        )
        const found = runs.flatMap(({ devId, begin, end, thinBegin }) =>
          Array.from({ length: end - begin }, (_, i) => `${devId} ${thinBegin + i} ${begin + i}`),
        )
        const wanted = [...parseDump(fixtureXml(name)).devices].flatMap(([devId, { mappings }]) =>
          [...mappings]
            .filter(([, { dataBlock }]) => dataBlock >= begin && dataBlock < end)
            .map(([vblock, { dataBlock }]) => `${devId} ${vblock} ${dataBlock}`),
        )
        t.strictSame(found.sort(), wanted.sort(), `${name}: ${begin}..${end}, as thin_dump`)
      }
    }
  },
)
