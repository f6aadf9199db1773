import { ThinfsError, volumeMissing } from '../base/index.js'
import type { PrunedSnapshot, PruneRequest, VolumeInfo } from './admin.js'
import { RULES, rulesThatKeep } from './retention.js'

/**
 * Says of each snapshot of a volume whether it is kept. A snapshot is a volume like any other, and
 * many are in use as such: clones. So a name has to say that it is one to be pruned, as in ZFS.
 * @param volumes all that there are
 * @throws BAD_ARGUMENT, VOLUME_MISSING: see `PoolAdmin.prune`
 */
export function judge(volumes: readonly VolumeInfo[], request: PruneRequest): PrunedSnapshot[] {
  const { name, except } = request
  if (!RULES.some(rule => (request[rule] ?? 0) > 0)) {
    const what = `${name}: no rule says what to keep, and all would go`
    throw new ThinfsError('BAD_ARGUMENT', what)
  }
  const related = volumes.filter(
    volume => volume.name === name || volume.origin === name || isSnapshotOf(name, volume.name),
  )
  if (related.length === 0) throw volumeMissing(name)
  const byAge = related
    .filter(volume => volume.name !== name)
    .sort((a, b) => (b.created ?? 0) - (a.created ?? 0) || b.devId - a.devId)
  const whyNot = (volume: VolumeInfo): string | null => {
    if (!isSnapshotOf(name, volume.name)) return `not named ${name}@…`
    if (except.includes(volume.name)) return 'in pool.yaml'
    return volume.created === null ? 'age unknown' : null
  }
  const judged = byAge.filter(volume => whyNot(volume) === null)
  const created = judged.map(volume => volume.created!)
  const rules = rulesThatKeep(created, request)
  return byAge.map(volume => {
    const why = whyNot(volume)
    const kept = why === null ? rules[judged.indexOf(volume)]! : [why]
    return { name: volume.name, created: volume.created, kept, busy: null }
  })
}

/** Whether a name is NAME@…: `web@monday@2` is a snapshot of `web@monday`. */
function isSnapshotOf(name: string, snapshot: string): boolean {
  return snapshot.lastIndexOf('@') === name.length && snapshot.startsWith(name)
}
