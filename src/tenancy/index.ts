/** Who may write to a pool: the record of its tenant, acquiring, keeping and giving back. */
export { type FenceRule, fence } from './fence.js'
export { type Host, isSameBoot, thisHost } from './host.js'
export { mayTake, nameOfTenant } from './may-take.js'
export type { Tenant } from './record.js'
export { type RecordOptions, RecordTenancy, SIGN_PERIOD } from './record-tenancy.js'
export { Reservation, reservationKey } from './reservation.js'
export {
  describeTenant,
  inUse,
  isFree,
  isSameTenant,
  isUnused,
  type Seen,
  type Strength,
  type Tenancy,
} from './tenancy.js'
export { TenantFile } from './tenant-file.js'
export { lookAt, type TenantPlace } from './tenant-place.js'
