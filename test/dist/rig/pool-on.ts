/**
 * thinfs on a machine: a pool in a folder that it shares with others, and where it has it mounted.
 */
import { join, resolve } from 'node:path'
import type { PoolStatus } from '../../../src/volumes/index.js'
import type { Outcome } from '../../support/mounted-pool.js'
import type { Host, Machine } from './machine.js'

const PROGRAM = resolve(import.meta.dirname, '../../../bin/thinfs.js')
const MOUNT_POINT = '/run/thin'

export class PoolOn<M extends Host = Machine> {
  readonly machine: M
  /** The pool's folder, as the machine sees it. */
  readonly folder: string

  constructor(machine: M, folder: string) {
    this.machine = machine
    this.folder = folder
  }

  get volume(): string {
    return join(MOUNT_POINT, 'web')
  }

  /** The command line of thinfs; it has to succeed. */
  thinfs(...args: string[]): Promise<string> {
    return this.machine.run(process.execPath, PROGRAM, ...args)
  }

  attemptThinfs(...args: string[]): Promise<Outcome> {
    return this.machine.attempt(process.execPath, PROGRAM, ...args)
  }

  async mount(...options: string[]): Promise<void> {
    await this.machine.run('mkdir', '-p', MOUNT_POINT)
    await this.thinfs('mount', this.folder, MOUNT_POINT, ...options)
  }

  async attemptMount(...options: string[]): Promise<Outcome> {
    await this.machine.run('mkdir', '-p', MOUNT_POINT)
    return this.attemptThinfs('mount', this.folder, MOUNT_POINT, ...options)
  }

  async umount(): Promise<void> {
    await this.thinfs('umount', this.folder)
  }

  /** Ends a mount that serves nothing any more, which the command tells of as well. */
  async endMount(): Promise<void> {
    const { stderr } = await this.attemptThinfs('umount', this.folder, '--force')
    const { status } = await this.machine.attempt('mountpoint', '-q', MOUNT_POINT)
    if (status === 0) throw new Error(`${MOUNT_POINT} is mounted still: ${stderr}`)
  }

  async status(): Promise<PoolStatus> {
    return JSON.parse(await this.thinfs('status', this.folder, '--json'))
  }

  /** The errno of a write that is flushed at once; null when both succeed. */
  async errnoOfWrite(number: number): Promise<string | null> {
    const printed = await this.machine.run('python3', '-c', WRITE, this.volume, String(number))
    return printed === 'none' ? null : printed
  }
}

/** Writes one block as writer.py does. */
const WRITE = `
import errno, os, struct, sys
volume, number = sys.argv[1], int(sys.argv[2])
try:
    fd = os.open(volume, os.O_RDWR)
    os.pwrite(fd, struct.pack('<QQ', number, number % 16384) * 256, number % 16384 * 4096)
    os.fsync(fd)
    print('none')
except OSError as err:
    print(errno.errorcode[err.errno])
`
