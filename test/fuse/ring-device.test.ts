// Goal: no request waits that the kernel has given to the ring. Method: a ring whose completions
// the test decides, one for each entry that was pushed.
import { constants } from 'node:os'
import t from 'tap'
import { IN_HEADER } from '../../src/fuse/abi.js'
import { RingDevice } from '../../src/fuse/ring-device.js'
import type { Ring, RingOptions } from '../../src/ring/index.js'

const { ENOMEM } = constants.errno

/** Completes what the test says, in that order; knows nothing of what was pushed. */
class FakeRing {
  readonly arenaAddress = 0
  readonly words = new Uint32Array(1024)
  readonly arena: ArrayBuffer
  readonly completions: [entry: number, result: number][] = []

  constructor({ arenaSize = 0 }: RingOptions) {
    this.arena = new ArrayBuffer(arenaSize)
  }

  command(): number {
    return 0
  }

  submit(): number {
    return this.completions.length
  }

  poll(): number {
    return this.completions.length
  }

  take(onCompletion: (entry: number, result: number) => void, most = Infinity): void {
    for (const [entry, result] of this.completions.splice(0, most)) onCompletion(entry, result)
  }
}

function openDevice() {
  let ring: FakeRing | null = null
  const device = new RingDevice(-1, options => {
    ring = new FakeRing(options)
    return ring as unknown as Ring
  })
  device.register()
  const [places, lengths] = [new Uint32Array(16), new Uint32Array(16)]
  const read = (count: number): number => device.read(device.slots, count, places, lengths, 0)
  return { device, ring: ring!, read, places, lengths }
}

t.test('a request behind entries that the kernel refused is read at once', async t => {
  const { device, ring, read, places, lengths } = openDevice()
  // What a memory cgroup at its limit does to all but the first entries of a queue.
  for (let entry = 1; entry <= 20; entry++) ring.completions.push([entry, -ENOMEM])
  ring.completions.push([0, 0])
  device.slots.setU32(IN_HEADER.at.len, 40)
  t.equal(read(1), 1, 'the first event of a mount reads one request')
  t.equal(places[0], 0)
  t.equal(lengths[0], 40)
  t.equal(read(1), 0, 'nothing waits')
})

t.test('a batch is no larger than asked for, refused entries among it or not', async t => {
  const { ring, read } = openDevice()
  for (let entry = 1; entry <= 30; entry++) ring.completions.push([entry, entry % 2 ? 0 : -ENOMEM])
  let nrRead = 0
  for (let count = read(4); count > 0; count = read(4)) {
    t.ok(count <= 4)
    nrRead += count
  }
  t.equal(nrRead, 15)
})
