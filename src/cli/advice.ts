/** Advice about a pool that does not take all requests. */
import type { PoolStatus } from '../volumes/index.js'

/** In one sentence, with the commands; null for a pool that is as it should be. */
export function adviceFor(status: PoolStatus): string | null {
  const { mode, reason, needsCheck, mount } = status
  const pool = mount?.mountPoint ?? 'POOL'
  const unmount = mount ? `thinfs umount ${pool}; ` : ''
  if (needsCheck) {
    const repair = 'thinfs repair POOL, which keeps the damaged metadata'
    return `${unmount}thinfs check POOL; if that finds damage, ${repair}; then thinfs mount, which clears the flag`
  }
  switch (mode) {
    case 'out_of_data_space':
    case 'out_of_metadata_space':
      if (reason?.includes("the host's disk is full")) {
        return `make room on the host's disk; or thinfs remove ${pool} NAME, or fstrim what is mounted`
      }
      if (mode === 'out_of_data_space') {
        return `thinfs extend ${pool} --data +SIZE, or thinfs remove ${pool} NAME, or fstrim what is mounted`
      }
      return `thinfs extend ${pool} --metadata +SIZE, or thinfs remove ${pool} NAME`
    case 'fail':
      // The reason has the cure.
      if (mount === null && status.refusal !== null) return null
      return `${unmount}see ${mount?.logFile ?? 'its log'} and the host's disk; then thinfs mount`
    default:
      return null
  }
}
