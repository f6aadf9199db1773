/**
 * One process at a time has a pool: locks on its data and metadata see to that
 * (volumes/pool-files.ts). The engine inherits them. They hold until daemon and engine have both
 * ended, so a daemon that is killed does not give away a pool whose engine still serves.
 */
import { readFileSync, readlinkSync, statSync } from 'node:fs'
import { basename } from 'node:path'
import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import { list, otherProcesses, read, thinfsMountAt } from '../host/index.js'
import type { Seen } from '../tenancy/index.js'
import {
  lockedPathsOf,
  makeTenantFile,
  PoolFiles,
  provenByLocks,
  servedElsewhere,
  tenantInTheWay,
} from '../volumes/index.js'
import { readDaemonFile } from './daemon-file.js'

/** Milliseconds that a mount takes at most from where it is seen until it can be asked. */
const MOUNTING_MS = 2000

/** Another process has the pool. */
export class PoolHeld extends ThinfsError {
  /**
   * Milliseconds for which it is worth to try again. Infinity for who lets go of it by himself: a
   * command, a mount that begins or ends, somebody who cannot be seen, a host whose locks the
   * storage takes away when it is gone. 0 for another program, and the mount of another pool or
   * host.
   */
  readonly patienceMs: number
  /** The mount of another host that has the pool, or had it last; null for none. */
  readonly tenant: Seen | null

  constructor(detail: string, patienceMs: number, cause: unknown, tenant: Seen | null = null) {
    super('POOL_IN_USE', detail, { cause })
    this.patienceMs = patienceMs
    this.tenant = tenant
  }
}

/**
 * @param readOnly shares the pool with others that only read it
 * @param fenced of `MountTenancy`
 * @returns the files, whose closing gives up the locks where no other process has inherited them
 * @throws NOT_A_POOL when one cannot be opened; POOL_IN_USE, a `PoolHeld`, naming who has it
 */
export function lockPool(
  config: PoolConfig,
  readOnly = false,
  fenced: string | null = null,
): PoolFiles {
  const files = lockFiles(config, readOnly)
  try {
    const tenant = tenantInTheWay(config, { hasLocks: true, fenced })
    if (tenant === null) {
      if (!readOnly) makeTenantFile(config)
      return files
    }
    throw heldElsewhere(config, tenant, 0)
  } catch (err) {
    files.close()
    throw err
  }
}

const heldElsewhere = (
  config: PoolConfig,
  tenant: Seen,
  patienceMs: number,
  cause?: unknown,
): PoolHeld => new PoolHeld(servedElsewhere(config, tenant).message, patienceMs, cause, tenant)

function lockFiles(config: PoolConfig, readOnly: boolean): PoolFiles {
  try {
    return PoolFiles.open(config, readOnly)
  } catch (err) {
    if (!(err instanceof ThinfsError) || err.code !== 'POOL_IN_USE') throw err
    // Processes of another host cannot be seen, and daemon.json may be of it.
    const tenant = tenantInTheWay(config, { hasLocks: false, fenced: null })
    if (tenant !== null) {
      const losesThem = provenByLocks(config) === 'enforced'
      throw heldElsewhere(config, tenant, losesThem ? Number.POSITIVE_INFINITY : 0, err)
    }
    const owner = ownerOf(config)
    // For a device that is mounted, or part of another, the message already says who uses it.
    if (owner === null) throw new PoolHeld(err.message, Number.POSITIVE_INFINITY, err)
    const paths = [config.metadata, config.data, config.state].flatMap(store => store?.path ?? [])
    const path = paths.find(path => err.message.startsWith(path))
    const what = path === config.metadata.path ? config.file : path
    throw new PoolHeld(`${what} is ${owner.how}`, owner.patienceMs, err)
  }
}

interface Owner {
  /** For people: `served by process 12 at /mnt`. */
  how: string
  patienceMs: number
}

/** The process that has the pool's data or metadata open; null when none is seen. */
function ownerOf(config: PoolConfig): Owner | null {
  const daemon = config.ofUser === undefined ? readDaemonFile(config.folder) : null
  const files = identitiesOf(lockedPathsOf(config))
  // A process that was killed keeps its number until its parent has noticed, but no files; then
  // another process may get the number. In the foreground any program may be the daemon.
  if (daemon !== null && hasOpen(daemon.pid, files)) {
    const { pid, mountPoint } = daemon
    return {
      how: `served by process ${pid} at ${mountPoint}`,
      patienceMs: patienceWith(mountPoint, MOUNTING_MS),
    }
  }
  const holders = otherProcesses()
    .filter(pid => hasOpen(pid, files))
    .map(pid => ({ pid, server: startOf(pid), command: commandOf(pid), ends: isEnding(pid) }))
  // A process that only reads the files, as cp does, has no lock.
  const holder =
    holders.find(({ server }) => server !== null) ??
    holders.find(({ command }) => command !== null) ??
    holders[0]
  if (holder === undefined) return null
  const { pid, server, command, ends } = holder
  if (server === null) {
    const name = command ?? (read(`/proc/${pid}/comm`).trimEnd() || 'which has ended')
    const how = `in use by process ${pid} (${name})`
    return { how, patienceMs: command === null && !ends ? 0 : Number.POSITIVE_INFINITY }
  }
  const isOwn = server.configFile === config.file
  const how =
    daemon !== null && isOwn
      ? `an engine whose daemon has died; thinfs mount at ${daemon.mountPoint} takes it over`
      : `process ${pid}, which has the pool ${server.configFile}`
  return {
    how: `served by ${how}`,
    patienceMs: patienceWith(server.mountPoint, isOwn ? MOUNTING_MS : 0),
  }
}

/** @param mounted what it is once the server has mounted the pool */
const patienceWith = (mountPoint: string, mounted: number): number =>
  thinfsMountAt(mountPoint) === null ? Number.POSITIVE_INFINITY : mounted

/** The names that thinfs is run by: its program, the link to it, mount(8)'s helpers. */
const PROGRAMS = /^(thinfs(\.js)?|u?mount\.(fuse\.)?thinfs)$/

/** `thinfs create` for a process that runs it; null for another one. */
function commandOf(pid: number): string | null {
  const [, ...words] = read(`/proc/${pid}/cmdline`).split('\0')
  const at = words.findIndex(word => !word.startsWith('-')) // Node's own options come before.
  if (at < 0 || !PROGRAMS.test(basename(words[at]!))) return null
  return `thinfs ${words[at + 1]}`
}

/** Whether a process has no memory any more: it ends, and its files are closed after that. */
const isEnding = (pid: number): boolean => read(`/proc/${pid}/cmdline`) === ''

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
