/** thin_dump's text, byte by byte: of images that the kernel and tools wrote, and of our own. */
import t from 'tap'
import { dumpJson, dumpXml, heldRootOf } from '../../src/streams/index.js'
import { MemoryStore } from '../support/memory-store.js'
import { fixture, fixtureFacts, fixtureXml } from '../support/thin-tools.js'

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
