/** Starting engines. */
import { type ChildProcess, spawn } from 'node:child_process'
import { createRequire } from 'node:module'
import type { PoolDescriptors } from '../volumes/index.js'
import { ENGINE_FD, type EngineStart, moreEngineFds } from './protocol.js'
import { TABLE_ENGINE_FD, type TableEngineStart } from './table-protocol.js'
import { PROTOCOL } from './version.js'

const require = createRequire(import.meta.url)
/** Path of the program that serves a pool. */
export const ENGINE_PROGRAM = require.resolve('#engine')
const TABLE_ENGINE_PROGRAM = require.resolve('#table-engine')

/**
 * An engine that serves allocates next to nothing, so that V8 has no reason to collect garbage but
 * to make the heap smaller, which stops the engine for 10 ms and more.
 */
const HEAP = ['--no-memory-reducer', '--initial-old-space-size=64']

/** The child's descriptors, from 0 on. */
type Stdio = (number | 'ignore' | 'ipc')[]

/**
 * Its own process group keeps an engine from the terminal's signals, which are for whoever starts
 * engines.
 */
function spawnProgram(program: string, start: object, stdio: Stdio): ChildProcess {
  // The number of cold reads under way at a time where io_uring is not allowed.
  const env = { UV_THREADPOOL_SIZE: '16', ...process.env }
  const options = { stdio, detached: true, env }
  const argument = JSON.stringify({ ...start, protocol: PROTOCOL })
  return spawn(process.execPath, [...HEAP, program, argument], options)
}

/**
 * Starts an engine that inherits the descriptors, with an IPC channel.
 * @param fds `fuse` is null where the transport has the engine mount
 */
export type SpawnEngine = (
  start: EngineStart,
  fds: { fuse: number | null } & PoolDescriptors,
) => ChildProcess

export const spawnEngine: SpawnEngine = (start, fds) => {
  const stdio: Stdio = ['ignore', 2, 2]
  stdio[ENGINE_FD.fuse] = fds.fuse ?? 'ignore'
  stdio[ENGINE_FD.metadata] = fds.metadata
  stdio[ENGINE_FD.data] = fds.data
  stdio[ENGINE_FD.folder] = fds.folder
  for (const [i, fd] of moreEngineFds(fds.more.length).entries()) stdio[fd] = fds.more[i]!
  return spawnProgram(ENGINE_PROGRAM, start, [...stdio, 'ipc'])
}

/** As `spawnEngine`, of the engine of devices. */
export function spawnTableEngine(
  start: TableEngineStart,
  fds: { fuse: number; mapper?: number },
): ChildProcess {
  const stdio: Stdio = ['ignore', 2, 2]
  stdio[TABLE_ENGINE_FD.fuse] = fds.fuse
  stdio[4] = 'ipc'
  if (fds.mapper !== undefined) stdio[TABLE_ENGINE_FD.mapper] = fds.mapper
  return spawnProgram(TABLE_ENGINE_PROGRAM, start, stdio)
}
