import { MetadataView } from '../metadata/index.js'
import type { Store } from '../storage/index.js'

/** Words of thin_delta. */
export type ChangeKind = 'same' | 'different' | 'left_only' | 'right_only'

/** Virtual blocks [begin, begin + length) that two volumes map alike, or otherwise. */
export interface Change {
  kind: ChangeKind
  begin: number
  length: number
}

/**
 * How two volumes differ, in runs of virtual blocks, ascending.
 * @param metadata in which the trees do not change
 * @param roots of the mapping trees
 * @param all runs that are the same, too: then all mappings are read, else only those in parts of
 *   the trees that the two do not share
 * @throws METADATA_CORRUPT
 */
export function* changesBetween(
  metadata: Store,
  [left, right]: readonly [left: number, right: number],
  all: boolean,
): Generator<Change> {
  let done: Change[] = []
  let run: Change | null = null
  const range = { begin: 0, end: Number.POSITIVE_INFINITY, shared: all }
  const view = new MetadataView(metadata)
  const steps = view.compare(left, right, range, (vblock, one, other) => {
    const kind = kindOf(one, other)
    if (kind === 'same' && !all) return
    if (run !== null && run.kind === kind && run.begin + run.length === vblock) {
      run.length++
      return
    }
    if (run !== null) done.push(run)
    run = { kind, begin: vblock, length: 1 }
  })
  while (!steps.next().done) {
    yield* done
    done = []
  }
  yield* done
  if (run !== null) yield run
}

function kindOf(left: number, right: number): ChangeKind {
  if (left < 0) return 'right_only'
  if (right < 0) return 'left_only'
  return left === right ? 'same' : 'different'
}
