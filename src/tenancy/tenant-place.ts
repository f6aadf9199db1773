import { DAMAGED, decodeSign, decodeTenant, TENANCY_BLOCK, type Tenant } from './record.js'
import type { Seen } from './tenancy.js'

/** The place of a tenant's record: two blocks of 4 KiB, read and written whole. */
export interface TenantPlace {
  /** Names it in messages. */
  readonly path: string
  read(into: Uint8Array, offset: number): Promise<void>
  write(from: Uint8Array, offset: number): Promise<void>
  flush(): Promise<void>
}

/** The first block. @throws POOL_MISMATCH for what is no record, and what reading throws */
export async function tenantAt(
  place: Pick<TenantPlace, 'path' | 'read'>,
): Promise<Tenant | typeof DAMAGED | null> {
  const block = Buffer.alloc(TENANCY_BLOCK)
  await place.read(block, 0)
  return decodeTenant(block, place.path)
}

/** Both blocks. @throws as `tenantAt` */
export async function lookAt(place: TenantPlace): Promise<Seen> {
  const tenant = await tenantAt(place)
  const block = Buffer.alloc(TENANCY_BLOCK)
  await place.read(block, TENANCY_BLOCK)
  return seenIn(tenant, block)
}

/** @param block the second one */
export function seenIn(tenant: Tenant | typeof DAMAGED | null, block: Buffer): Seen {
  const sign = decodeSign(block)
  if (tenant === DAMAGED) return { tenant: null, sign, isDamaged: true }
  return { tenant, sign: sign?.mountId === tenant?.mountId ? sign : null, isDamaged: false }
}
