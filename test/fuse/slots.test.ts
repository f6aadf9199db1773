import { readFileSync } from 'node:fs'
import t from 'tap'
import { DEV_LAYOUT, residentMemory, Slots } from '../../src/fuse/slots.js'
import { native } from '../../src/native.js'

/** Bytes of the process's memory around an address, and how many of them have pages. */
function mappingAt(address: number): { size: number; resident: number } {
  const maps = readFileSync('/proc/self/smaps', 'utf8').split(/^(?=[0-9a-f]+-[0-9a-f]+ )/m)
  for (const map of maps) {
    const [begin, end] = /^([0-9a-f]+)-([0-9a-f]+)/
      .exec(map)!
      .slice(1)
      .map(hex => parseInt(hex, 16))
    if (address < begin! || address >= end!) continue
    return { size: end! - begin!, resident: Number(/^Rss: *([0-9]+) kB/m.exec(map)![1]) * 1024 }
  }
  throw new Error('no such memory')
}

t.test('all pages are there before the first request comes: a kill is no error then', async t => {
  // More than what malloc(3) takes from memory that was used before.
  const slots = new Slots(1 << 20, 64, DEV_LAYOUT, residentMemory(64 << 20))
  const { size, resident } = mappingAt(native.buffer_address(slots.buffer))
  t.ok(size >= 64 << 20)
  t.equal(resident, size)
})
