import { ThinfsError } from '../base/index.js'
import { checkMetadataInSteps, type OnCheckProgress } from '../metadata/index.js'
import type { Store } from '../storage/index.js'
import type { CheckProblem, CheckReport } from './admin.js'
import { checkData, type DataCheck } from './check-data.js'
import { checkTable, readTable, type TableFile } from './volume-table.js'

/** The files that a pool's metadata is compared with. */
export interface CheckedFiles {
  /** The pool's name in pool.yaml. */
  name: string
  metadata: Store
  /** Only its size is looked at. */
  data: Pick<Store, 'path' | 'size'>
  /** volumes.json. */
  table: TableFile
}

/**
 * Verifies metadata as the last commit left it, the volumes.json that goes with it, and the size of
 * the data, in steps of some milliseconds. The first reads superblock and volumes.json; what the
 * superblock leads to must not change until the last.
 */
export function* checkFiles(
  files: CheckedFiles,
  onProgress: OnCheckProgress | null = null,
): Generator<void, CheckReport, void> {
  const { name, metadata, data, table: file } = files
  const steps = checkMetadataInSteps(metadata, onProgress)
  let step = steps.next()
  const table = tryRead(file)
  for (; !step.done; step = steps.next()) yield
  const { transactionId, uuid, devices, dataSize, ...report } = step.value
  const problems: CheckProblem[] = [...report.problems]
  if (dataSize !== null && data.size < dataSize) {
    const message = `${data.path}: ${data.size} bytes, wanted the pool's ${dataSize}`
    problems.push({ severity: 'error', message, code: 'POOL_MISMATCH' })
  }
  if (table instanceof ThinfsError) problems.push(problemOf(table))
  else if (transactionId !== null && table !== null) {
    // Without a readable superblock there is nothing to hold the names against.
    problems.push(...checkTable(file.path, table, { name, transactionId, uuid }, new Set(devices)))
  }
  return { ...report, devices: devices.length, problems, data: null }
}

function tryRead(file: TableFile) {
  try {
    return readTable(file)
  } catch (err) {
    if (err instanceof ThinfsError) return err
    throw err
  }
}

/** The problem of files that cannot be read, or do not belong together. */
export const problemOf = ({ code, message }: ThinfsError): CheckProblem => ({
  ...{ severity: 'error', message },
  code: code === 'IO_ERROR' ? code : 'POOL_MISMATCH',
})

/**
 * Whether metadata or names are damaged, or data is missing: what comes before a look at the data.
 */
export const isDamaged = ({ problems }: CheckReport): boolean =>
  problems.some(({ severity }) => severity === 'error')

/** A report with what the deep part of the check finds. */
export async function withData(report: CheckReport, check: DataCheck): Promise<CheckReport> {
  const [data, problems] = await checkData(check)
  return { ...report, problems: [...report.problems, ...problems], data }
}
