// Goal: pools and thin devices answer what the kernel's do, to the character. Method: the steps of
// test/fixtures/kernel-tables, whose answers were recorded from a kernel, here; then thin_dump of
// what they left.
import { createHash } from 'node:crypto'
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { errnoOf, MIB } from '../../src/base/index.js'
import type { Target } from '../../src/tables/index.js'
import { get, poolLine, put, reload, SECTOR, tablesHere, thinLine } from '../support/tables.js'
import { thinCheck, thinDumpXml } from '../support/thin-tools.js'

const FIXTURE = join(import.meta.dirname, '..', 'fixtures', 'kernel-tables', 'kernel.txt')

/** What a loop device above makes of it. */
const BLOCK_LAYER: Record<string, string> = { EROFS: 'EIO' }

t.test('what the kernel answers', async t => {
  const { tables, events, file } = tablesHere(t)
  const metadata = file('metadata', (4 * MIB) / SECTOR)
  const data = file('data', (64 * MIB) / SECTOR)
  const minors = new Map<string, number>()
  const named = (name: string): number => minors.get(name) ?? 1_000_000

  const parse = ([_start, length, type, ...words]: string[]): Target => {
    const size = Number(length)
    if (type === 'thin') return thinLine(named(words[0]!), Number(words[1]), size)
    const [, , blockSize, lowWater, , ...features] = words
    const has = (feature: string): boolean => features.includes(feature)
    return poolLine(metadata, data, {
      length: size,
      blockSize: Number(blockSize),
      lowWater: Number(lowWater),
      skipBlockZeroing: has('skip_block_zeroing'),
      ignoreDiscard: has('ignore_discard'),
      noDiscardPassdown: has('no_discard_passdown'),
      readOnly: has('read_only'),
      errorIfNoSpace: has('error_if_no_space'),
    })
  }

  const step = async ([what, name, ...words]: string[]): Promise<string> => {
    const minor = named(name ?? '')
    const [first, count, fill] = words.map(Number)
    switch (what) {
      case 'create': {
        const fresh = minors.size
        await tables.create(fresh)
        try {
          minors.set(name!, fresh)
          await reload(tables, fresh, parse(words))
        } catch (err) {
          minors.delete(name!)
          await tables.remove(fresh)
          throw err
        }
        return ''
      }
      case 'load':
        await tables.load(minor, [parse(words)], false)
        return ''
      case 'suspend':
        await tables.suspend(minor, true)
        return ''
      case 'resume':
        await tables.resume(minor)
        return ''
      case 'remove':
        await tables.remove(minor)
        minors.delete(name!)
        return ''
      case 'message':
        return (await tables.message(minor, 0, words)) ?? ''
      case 'status':
        return (await tables.status(minor, true)).join('\n')
      case 'events':
        return String(events.filter(n => n === minor).length)
      case 'write':
        await put(tables.device(minor), first! * SECTOR, Buffer.alloc(count! * SECTOR, fill))
        return ''
      case 'fill':
        for (let i = 0; i < count!; i++) {
          const block = Buffer.alloc(128 * SECTOR, fill)
          await put(tables.device(minor), (first! + i * 128) * SECTOR, block)
        }
        return ''
      case 'discard':
        await tables.device(minor).discard(first! * SECTOR, count! * SECTOR)
        return ''
      case 'read': {
        const found = await get(tables.device(minor), first! * SECTOR, count! * SECTOR)
        return createHash('sha256').update(found).digest('hex').slice(0, 16)
      }
      default:
        t.equal(thinCheck(metadata.path).status, 0)
        return thinDumpXml(metadata.path).trimEnd()
    }
  }

  const recorded = readFileSync(FIXTURE, 'utf8').split(/^\$ /m).slice(1)
  for (const record of recorded) {
    const [line, ...answer] = record.split('\n')
    let found: string
    try {
      found = await step(line!.split(' '))
    } catch (err) {
      found = BLOCK_LAYER[errnoOf(err)] ?? errnoOf(err)
    }
    t.equal(found, answer.join('\n').replace(/\n$/, ''), line!)
  }
})
