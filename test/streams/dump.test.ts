/** thin_dump's text, byte by byte: of images that the kernel and tools wrote, and of our own. */
import { spawnSync } from 'node:child_process'
import t from 'tap'
import { dumpJson, dumpXml, heldRootOf, reverseMap } from '../../src/streams/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { fixture, fixtureFacts, fixtureXml, parseDump, withImage } from '../support/thin-tools.js'

const GOOD = Object.keys(fixtureFacts()).filter(name => !name.startsWith('corrupt-'))

const storeOf = (name: string): MemoryStore => {
  const image = fixture(name)
  return new MemoryStore(image.length, { image })
}

for (const name of GOOD) {
  t.test(name, async t => {
    const xml = [...dumpXml(storeOf(name), null)].join('')
    t.equal(xml === fixtureXml(name), true, 'as thin_dump')
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
  t.throws(() => heldRootOf(storeOf('one-thin')), { code: 'SNAPSHOT_NOT_HELD' })
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
