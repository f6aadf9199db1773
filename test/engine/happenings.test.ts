// Goal: each event of a pool is told once, in the words of docs/MONITORING.md, with the pool's
// numbers of that moment, and those from before the pool was open are told when it is. Method: a
// pool in memory that is filled, a plain listener beside, and the page.
import { readFileSync } from 'node:fs'
import t from 'tap'
import type { Told } from '../../src/control/index.js'
import { Happenings } from '../../src/engine/happenings.js'
import { NO_EVENTS, type PoolEvents } from '../../src/pool/index.js'
import { openFiles } from '../support/memory-pool.js'
import { BLOCK, files, filled, thin } from '../support/thin-devices.js'

t.test('what happens to a pool is told with its numbers', async t => {
  const told: Told[] = []
  const heard: string[] = []
  const happenings = new Happenings(
    event => told.push(event),
    devId => `volume ${devId}`,
  )
  const plain: PoolEvents = {
    ...NO_EVENTS,
    mode: mode => void heard.push(mode),
    lowWater: free => void heard.push(`low ${free}`),
    warning: what => void heard.push(what),
  }
  const events = happenings.besides(plain)
  const memory = files(4)
  const { pool } = await openFiles(memory, { events, lowWaterMark: 1 })
  events.warning('an odd file', 'host_low')
  events.limitReached(7 as never)
  t.same(told, [], 'nobody has its numbers yet')
  happenings.opened(pool)
  await thin(pool, 0).write(0, 3 * BLOCK, filled(3 * BLOCK, 1), 0)
  await thin(pool, 0).write(3 * BLOCK, BLOCK, filled(BLOCK, 1), 0)
  await t.rejects(thin(pool, 0).write(4 * BLOCK, BLOCK, filled(BLOCK, 1), 0) as Promise<void>)
  t.same(
    told.map(({ event, detail, mode, dataUsed }) => [event, detail, mode, dataUsed! / BLOCK]),
    [
      ['host_low', 'an odd file', 'write', 0],
      ['limit_reached', 'volume 7 maps its limit', 'write', 0],
      ['low_water_data', '', 'write', 3],
      ['full_data', 'no free data blocks', 'out_of_data_space', 4],
    ],
  )
  t.equal(told[1]!.volume, 'volume 7')
  t.same(heard, ['an odd file', 'low 1', 'out_of_data_space'], 'the other listener hears the same')
  for (const { dataSize, metadataSize = 0, metadataUsed = 0 } of told) {
    t.same([dataSize, metadataSize], [4 * BLOCK, memory.metadata.size])
    t.ok(metadataUsed! > 0 && metadataUsed! < metadataSize!)
  }
  await pool.close()
})

t.test('every event has its row on the page', async t => {
  const page = readFileSync('docs/MONITORING.md', 'utf8')
  const names = new Set<string>()
  const happenings = new Happenings(
    ({ event }) => names.add(event),
    () => 'v',
  )
  const events = happenings.besides(NO_EVENTS)
  const { pool } = await openFiles(files(4))
  happenings.opened(pool)
  for (const mode of [
    'write',
    'read_only',
    'out_of_data_space',
    'out_of_metadata_space',
  ] as const) {
    events.mode(mode, null)
  }
  events.lowWater(1)
  events.lowWaterMetadata(1)
  events.limitReached(0 as never)
  events.extended('data', 1)
  events.extended('metadata', 1)
  events.warning('odd')
  for (const name of names) t.match(page, new RegExp(`^\\|[^|]*\`${name}\``, 'm'), name)
  t.equal(names.size, 9)
})
