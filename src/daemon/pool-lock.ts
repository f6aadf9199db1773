/**
 * One process at a time has a pool: locks on its data and metadata see to that
 * (volumes/pool-files.ts). The engine inherits them. They hold until daemon and engine have both
 * ended, so a daemon that is killed does not give away a pool whose engine still serves.
 */
import { readFileSync, readlinkSync, statSync } from 'node:fs'
import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { list, otherProcesses } from '../host/index.js'
import { PoolFiles } from '../volumes/index.js'
import { readDaemonFile } from './daemon-file.js'

/**
 * @param readOnly shares the pool with others that only read it
 * @returns the files, whose closing gives up the locks where no other process has inherited them
 * @throws NOT_A_POOL when one cannot be opened; POOL_IN_USE naming who has it
 */
export function lockPool(config: PoolConfig, readOnly = false): PoolFiles {
  try {
    return PoolFiles.open(config, readOnly)
  } catch (err) {
    // For a device that is mounted, or part of another, the message already says who uses it.
    if (!(err instanceof ThinfsError) || err.code !== 'POOL_IN_USE') throw err
    const who = owner(config)
    if (who === null) throw err
    const path = [config.metadata.path, config.data.path].find(path => err.message.startsWith(path))
    const what = path === config.metadata.path ? config.file : path
    throw new ThinfsError('POOL_IN_USE', `${what} is served by ${who}`, { cause: err })
  }
}

/** The process that has the pool's data or metadata open, for people; null when none is seen. */
function owner(config: PoolConfig): string | null {
  const daemon = config.ofUser === undefined ? readDaemonFile(config.folder) : null
  const files = identitiesOf([config.metadata.path, config.data.path])
  // A process that was killed keeps its number until its parent has noticed, but no files; then
  // another process may get the number. In the foreground any program may be the daemon.
  if (daemon !== null && hasOpen(daemon.pid, files)) {
    return `process ${daemon.pid} at ${daemon.mountPoint}`
  }
  const engine = processWith(files)
  if (daemon !== null && (engine === null || engine.configFile === config.file)) {
    const { mountPoint } = daemon
    return `an engine whose daemon has died; thinfs mount at ${mountPoint} takes it over`
  }
  if (engine === null) return null
  return engine.configFile === null
    ? `process ${engine.pid}`
    : `process ${engine.pid}, which has the pool ${engine.configFile}`
}

/** Another process that has one of these files open, and the pool.yaml that it was started with. */
function processWith(files: Identity[]): { pid: number; configFile: string | null } | null {
  const pid = otherProcesses().find(pid => hasOpen(pid, files))
  return pid === undefined ? null : { pid, configFile: startOf(pid)?.configFile ?? null }
}

/** False for a process that has ended, or is another user's. */
function hasOpen(pid: number, files: Identity[]): boolean {
  return list(`/proc/${pid}/fd`).some(fd => {
    const link = `/proc/${pid}/fd/${fd}`
    try {
      if (!readlinkSync(link).startsWith('/')) return false
      const stat = statSync(link, { throwIfNoEntry: false })
      return stat !== undefined && files.some(file => isSame(file, stat))
    } catch {
      return false
    }
  })
}

function identitiesOf(paths: string[]): Identity[] {
  return paths.flatMap(path => statSync(path, { throwIfNoEntry: false }) ?? [])
}

type Identity = { dev: number; ino: number; rdev: number }

const isSame = (one: Identity, other: Identity): boolean =>
  one.rdev !== 0 ? one.rdev === other.rdev : one.dev === other.dev && one.ino === other.ino

/** The processes that serve the pool of a pool.yaml: its daemon, its engine. */
export const serversOf = (file: string): number[] =>
  otherProcesses().filter(pid => startOf(pid)?.configFile === file)

/**
 * The parameters of a daemon or an engine, JSON in its first argument. Null for another process.
 */
export function startOf(pid: number): { configFile: string; mountPoint: string } | null {
  try {
    const [, json] = /\0(\{.*\})\0/.exec(readFileSync(`/proc/${pid}/cmdline`, 'utf8'))!
    const { configFile, mountPoint, options } = JSON.parse(json!)
    return { configFile, mountPoint: mountPoint ?? options.mountPoint }
  } catch {
    return null
  }
}
