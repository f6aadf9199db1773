import type { RepairReport } from '../streams/index.js'

/** The losses of damaged metadata, a line each. */
export function lostLines(report: RepairReport, names: ReadonlyMap<number, string>): string[] {
  const { superblock, searched, transactionId } = report
  const nameOf = (devId: number): string => names.get(devId) ?? `device ${devId}`
  const lines: string[] = []
  if (superblock !== null) lines.push(`the superblock was damaged: ${superblock}`)
  if (searched) {
    const found = `the trees were found by a search, as of transaction ${transactionId}`
    lines.push(`${found}: the last changes may be missing`)
  }
  for (const { begin, end, why } of report.lostDevices) {
    lines.push(`lost: devices ${rangeOf(begin, end)}, if there were any: ${why}`)
  }
  for (const { devId, begin, end, why } of report.lost) {
    lines.push(`lost: ${nameOf(devId)}: mappings of blocks ${rangeOf(begin, end)}: ${why}`)
  }
  for (const devId of report.withoutDetails) {
    lines.push(`${nameOf(devId)}: when it was made is not known any more`)
  }
  return lines
}

const rangeOf = (begin: number, end: number): string =>
  end === Number.POSITIVE_INFINITY ? `from ${begin}` : `${begin} to ${end - 1}`
