/**
 * `/proc/devices` with a line for device-mapper: libdevmapper looks there for the major number that
 * its devices have. A file is mounted over it, which stays right when this process dies.
 */
import { closeSync, openSync, readSync, writeFileSync } from 'node:fs'
import { readMounts, unmountLazily } from '../host/index.js'
import { native } from '../native.js'

const PROC_DEVICES = '/proc/devices'
const MS_BIND = 4096
const LOOP_LINE = /^ *7 loop$/m
const DM_LINE = '  7 device-mapper'
const MAX_SIZE = 64 * 1024

/** @param text of /proc/devices */
export const withDeviceMapper = (text: string): string =>
  text.replace(LOOP_LINE, line => `${line}\n${DM_LINE}`)

export class ProcDevices {
  readonly #file: string
  /** The kernel's own. */
  readonly #fd: number
  #shown = ''

  /** Mounts `file` over /proc/devices. @throws of mount(2) */
  constructor(file: string) {
    this.#file = file
    this.#fd = openSync(PROC_DEVICES, 'r')
    try {
      this.refresh()
      native.mount_attach(file, PROC_DEVICES, '', MS_BIND, '')
    } catch (err) {
      closeSync(this.#fd)
      throw err
    }
  }

  /** Shows what the kernel says now: drivers come and go. */
  refresh(): void {
    const bytes = Buffer.alloc(MAX_SIZE)
    const text = withDeviceMapper(
      bytes.toString('utf8', 0, readSync(this.#fd, bytes, 0, MAX_SIZE, 0)),
    )
    if (text === this.#shown) return
    writeFileSync(this.#file, text)
    this.#shown = text
  }

  async close(): Promise<void> {
    closeSync(this.#fd)
    await uncoverProcDevices()
  }
}

/** Takes away what is mounted over /proc/devices, also by a process that has died. */
export async function uncoverProcDevices(): Promise<void> {
  while (readMounts().some(({ mountPoint }) => mountPoint === PROC_DEVICES)) {
    await unmountLazily(PROC_DEVICES)
  }
}
