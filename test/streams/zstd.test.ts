/**
 * Goal: no result of zstd is copied byte by byte. Method: count who iterates over bytes.
 */
import { randomBytes } from 'node:crypto'
import t from 'tap'
import { loadZstd } from '../../src/streams/zstd.js'

t.test('what cannot be compressed goes there and back in one copy', async t => {
  const codec = await loadZstd()
  const content = randomBytes(65536)
  const arrays = Object.getPrototypeOf(Uint8Array.prototype)
  const iterator = arrays[Symbol.iterator]
  let iterated = 0
  arrays[Symbol.iterator] = function (this: unknown) {
    iterated++
    return iterator.call(this)
  }
  t.teardown(() => {
    arrays[Symbol.iterator] = iterator
  })
  const frame = Buffer.from(codec.compress(content).buffer)
  const back = codec.decompress(frame, content.length)
  t.equal(iterated, 0)
  t.ok(content.equals(back))
  codec.compress(Buffer.alloc(65536, 1))
  t.ok(content.equals(back), 'a result stays what it is')
})
