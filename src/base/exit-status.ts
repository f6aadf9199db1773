import { constants } from 'node:os'

/** The status of a program that has ended, as a shell has it: 128 and the number of a signal. */
export const exitStatusOf = (code: number | null, signal: NodeJS.Signals | null): number =>
  code ?? 128 + constants.signals[signal!]
