// Goal: a record is read as it was written, or known to be damaged. Method: the bytes by hand, and
// every point at which a write can be torn.
import t from 'tap'
import {
  DAMAGED,
  decodeSign,
  decodeTenant,
  encodeSign,
  encodeTenant,
  type Tenant,
} from '../../src/tenancy/record.js'

const TENANT: Tenant = {
  generation: 7,
  since: 1_795_917_785,
  mountId: '00112233445566778899aabbccddeeff',
  host: {
    name: 'host-ä',
    machineId: '0123456789abcdef0123456789abcdef',
    bootId: 'fedcba9876543210fedcba9876543210',
  },
  address: '10.0.0.9:0/123',
}
const NEXT: Tenant = { ...TENANT, generation: 8, mountId: 'f'.repeat(32), since: 1_795_917_999 }
const SIGN = { generation: 7, mountId: TENANT.mountId, beat: 3, time: 1_795_917_785_123 }

/** CRC-32C as RFC 3720 has it, a bit at a time. */
function crc32c(bytes: Uint8Array): number {
  let crc = 0xffff_ffff
  for (const byte of bytes) {
    crc ^= byte
    for (let bit = 0; bit < 8; bit++) crc = (crc >>> 1) ^ (crc & 1 ? 0x82f6_3b78 : 0)
  }
  return ~crc >>> 0
}

t.test('the bytes of a record', async t => {
  const block = Buffer.from(encodeTenant(TENANT))
  t.equal(block.length, 4096)
  t.equal(
    block.toString('hex', 4, 86),
    '74656e6e0100000000000000' + // magic, version, pad
      '0700000000000000' + // generation
      'd9870b6b00000000' + // since
      TENANT.mountId +
      TENANT.host.bootId +
      TENANT.host.machineId +
      Buffer.from('host-ä').toString('hex').slice(0, 12),
  )
  const csum = (~crc32c(block.subarray(4)) ^ 1_953_395_713) >>> 0
  t.equal(block.readUInt32LE(0), csum, 'CRC-32C, as the metadata has it')
  t.strictSame(decodeTenant(block, 'place'), TENANT)
  t.strictSame(decodeTenant(Buffer.alloc(4096), 'place'), null, 'zeros: nobody')
})

t.test('a sign', async t => {
  for (const gaveBack of [false, true]) {
    const sign = { ...SIGN, gaveBack }
    t.strictSame(decodeSign(Buffer.from(encodeSign(sign))), sign)
  }
  t.equal(decodeSign(Buffer.from(encodeTenant(TENANT))), null, 'a record is no sign')
  const block = Buffer.from(encodeSign({ ...SIGN, gaveBack: false }))
  block[24]!++
  t.equal(decodeSign(block), null)
})

t.test('a record that was torn anywhere is the old one, the new one, or damaged', async t => {
  const after = Buffer.from(encodeTenant(NEXT))
  for (const before of [Buffer.alloc(4096), Buffer.from(encodeTenant(TENANT))]) {
    const old = decodeTenant(before, 'place')
    for (let end = 0; end <= 4096; end++) {
      const torn = Buffer.concat([after.subarray(0, end), before.subarray(end)])
      const found = decodeTenant(torn, 'place')
      if (found === DAMAGED) continue
      const wanted = torn.equals(before) ? old : torn.equals(after) ? NEXT : undefined
      t.strictSame(found, wanted, `after ${end} bytes`)
    }
    // A disk writes sectors whole, in any order: all of the record is in the first.
    const others = Buffer.concat([before.subarray(0, 512), after.subarray(512)])
    t.strictSame(decodeTenant(others, 'place'), old)
  }
})

t.test('what is no record is not taken for one', async t => {
  const other = Buffer.alloc(4096, 'x')
  t.throws(() => decodeTenant(other, 'place'), { code: 'POOL_MISMATCH', message: /^place: / })
  const later = Buffer.from(encodeTenant(TENANT))
  later.writeUInt32LE(2, 8)
  later.writeUInt32LE((~crc32c(later.subarray(4)) ^ 1_953_395_713) >>> 0, 0)
  t.throws(() => decodeTenant(later, 'place'), { code: 'POOL_MISMATCH', message: /version 2/ })
})

t.test('names that are too long are cut off', async t => {
  const long = {
    ...TENANT,
    host: { ...TENANT.host, name: 'h'.repeat(100) },
    address: 'a'.repeat(200),
  }
  const found = decodeTenant(Buffer.from(encodeTenant(long)), 'place') as Tenant
  t.equal(found.host.name, 'h'.repeat(64))
  t.equal(found.address, 'a'.repeat(128))
})

t.test('what others have there is no torn record', async t => {
  // The superblock of an ext4 is at 1024; that of dm-thin begins with a checksum and its flags, 0.
  for (const offset of [1024, 336]) {
    const block = Buffer.alloc(4096)
    block.writeUInt32LE(0x1234_5678, 0)
    block.writeUInt32LE(0xef53, offset)
    t.throws(() => decodeTenant(block, 'place'), { code: 'POOL_MISMATCH', message: /^place: / })
  }
})
