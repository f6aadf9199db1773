/**
 * In the guest of lun.ktest.ts: two hosts, and the disks that the kernel's iSCSI target has for
 * them.
 *
 *   node reservations.mjs A-DATA A-METADATA B-DATA B-METADATA
 */
import assert from 'node:assert/strict'
import { execFileSync } from 'node:child_process'
import { closeSync, fdatasyncSync, openSync, writeSync } from 'node:fs'
import { ReservedDisk } from '../../../src/storage/index.js'
import { Reservation, reservationKey } from '../../../src/tenancy/reservation.js'

const [data, metadata, dataOfB, metadataOfB] = process.argv.slice(2).map(path => {
  const fd = openSync(path, 'r+')
  return { path, fd, disk: new ReservedDisk(path, fd) }
})
type Opened = NonNullable<typeof data>
const a = [metadata!, data!]
const b = [metadataOfB!, dataOfB!]
const disksOf = (host: Opened[]) => host.map(({ disk }) => disk)
const [A, B, C] = ['a', 'b', 'c'].map(letter => reservationKey(letter.repeat(32))) as [
  bigint,
  bigint,
  bigint,
]
const free = { recorded: null, takesAny: false }

function write({ fd }: Opened, letter: string): void {
  writeSync(fd, Buffer.alloc(4096, letter), 0, 4096, 65536)
  fdatasyncSync(fd)
}

/** What the disk itself has: a page of a write that was refused may be in the cache still. */
function read({ path }: Opened): string {
  const from = [`if=${path}`, 'iflag=direct', 'bs=4096', 'skip=16', 'count=1', 'status=none']
  const found = execFileSync('dd', from)
  assert.ok(found.length === 4096 && found.every(byte => byte === found[0]))
  return String.fromCharCode(found[0]!)
}

for (const disk of disksOf(a)) assert.equal(await disk.holder(), null)
const ofA = await Reservation.acquire(disksOf(a), { key: A, ...free })
await ofA.confirm()
for (const disk of disksOf(b)) assert.equal(await disk.holder(), A)
for (const disk of a) write(disk, 'a')
for (const disk of b) {
  assert.equal(read(disk), 'a', 'b may read')
  assert.throws(() => write(disk, 'x'), { code: 'EIO' })
  assert.equal(read(disk), 'a')
}
console.log('a has the disks')

await assert.rejects(Reservation.acquire(disksOf(b), { key: B, ...free }), { code: 'POOL_IN_USE' })
for (const disk of b) assert.throws(() => write(disk, 'x'), { code: 'EIO' }, 'not registered')
await ofA.confirm()
console.log('b is refused')

const ofB = await Reservation.acquire(disksOf(b), { key: B, recorded: A, takesAny: false })
await ofB.confirm()
for (const disk of b) write(disk, 'b')
for (const disk of a) assert.throws(() => write(disk, 'x'), { code: 'EIO' })
for (const disk of [...a, ...b]) assert.equal(read(disk), 'b')
await assert.rejects(ofA.confirm(), { code: 'FENCED' })
await assert.rejects(Reservation.of(disksOf(a), A).confirm(), { code: 'FENCED' })
await ofA.release()
await ofB.confirm()
console.log('b took over')

await ofB.release()
for (const disk of disksOf(a)) assert.equal(await disk.holder(), B, 'a stays out')
for (const disk of a) assert.throws(() => write(disk, 'x'), { code: 'EIO' })
const again = await Reservation.acquire(disksOf(a), { key: C, recorded: B, takesAny: false })
await again.confirm()
for (const disk of a) write(disk, 'c')
for (const disk of b) assert.equal(read(disk), 'c')
await assert.rejects(ofB.confirm(), { code: 'FENCED' })
console.log('a took over')

// An operator may end it with any program: here with the kernel's own call.
for (const disk of disksOf(a)) await disk.release(C)
for (const disk of disksOf(b)) assert.equal(await disk.holder(), null)
for (const disk of b) write(disk, 'd')
const last = await Reservation.acquire(disksOf(b), { key: B, ...free })
await last.release()
for (const disk of disksOf(a)) assert.equal(await disk.holder(), null)
for (const { fd } of [...a, ...b]) closeSync(fd)
console.log('nobody has them')
