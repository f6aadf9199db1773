/** A command that has a pool as long as it runs. */
import { spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { errnoOf, exitStatusOf, ThinfsError } from '../base/index.js'
import { environmentOf } from './environment.js'
import { type PoolOptions, withPool } from './test-pool.js'

/**
 * Signals that are passed on. Others cannot be caught, or are this process's own, as SIGCHLD is.
 */
const SIGNALS = ['SIGHUP', 'SIGINT', 'SIGQUIT', 'SIGTERM', 'SIGUSR1', 'SIGUSR2', 'SIGCONT'] as const
/** Those that a terminal sends to all processes in its foreground. */
const FROM_TERMINAL: readonly string[] = ['SIGINT', 'SIGQUIT']

/**
 * Runs a command with a new pool, the paths of which are in its environment; signals to this
 * process go to the command. The pool ends with it, and so does what it has left running.
 * @returns its exit status, as a shell has it: 128 and the signal's number when it was ended by one
 * @throws TOOL_FAILED with the errno when the command cannot be started; what `withPool` throws
 */
export async function runCommand(
  options: PoolOptions,
  command: string,
  args: readonly string[],
): Promise<number> {
  let forward: (signal: NodeJS.Signals) => void
  let early: NodeJS.Signals | null = null
  forward = signal => {
    early ??= signal
  }
  const onSignal = (signal: NodeJS.Signals): void => forward(signal)
  for (const signal of SIGNALS) process.on(signal, onSignal)
  try {
    const names = Object.keys(options.volumes ?? {})
    // Before anything is made: a name may be refused.
    environmentOf('', names)
    return await withPool(options, async ({ mountPoint }) => {
      if (early !== null && early !== 'SIGCONT') return exitStatusOf(null, early)
      const child = spawn(command, args, {
        stdio: 'inherit',
        env: { ...process.env, ...environmentOf(mountPoint, names) },
      })
      forward = signal => {
        if (!(FROM_TERMINAL.includes(signal) && isInForeground())) child.kill(signal)
      }
      return await new Promise<number>((resolve, reject) => {
        child.on('error', err => reject(cannotStart(command, err)))
        child.on('exit', (code, signal) => resolve(exitStatusOf(code, signal)))
      })
    })
  } finally {
    for (const signal of SIGNALS) process.off(signal, onSignal)
  }
}

function cannotStart(command: string, err: Error): ThinfsError {
  const errno = errnoOf(err)
  const what = errno === 'ENOENT' ? 'no such program' : 'cannot be started'
  return new ThinfsError('TOOL_FAILED', `${command}: ${what}`, { cause: err, errno })
}

/**
 * Whether this process, and with it the command, which is in its process group, is in the
 * foreground of a terminal. Source: proc(5), /proc/pid/stat: pgrp and tpgid, the third and the
 * sixth field after the name, which is in brackets.
 */
function isInForeground(): boolean {
  const stat = readFileSync('/proc/self/stat', 'utf8')
  const [, , pgrp, , , tpgid] = stat.slice(stat.lastIndexOf(')') + 2).split(' ')
  return pgrp === tpgid
}
