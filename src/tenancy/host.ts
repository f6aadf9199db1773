import { readFileSync } from 'node:fs'
import { hostname } from 'node:os'

/** A machine, as the record of a tenant has it. */
export interface Host {
  /** For people, and for the command that fences it. */
  name: string
  /** 32 hexadecimal digits. Clones of a machine may have one. */
  machineId: string
  /** 32 hexadecimal digits. */
  bootId: string
}

/** Digits of an id that is not known. */
const NONE = '0'.repeat(32)

/** This machine. Sources: machine-id(5), proc(5) random/boot_id. */
export const thisHost = (): Host => ({
  name: hostname(),
  machineId: idIn('/etc/machine-id'),
  bootId: idIn('/proc/sys/kernel/random/boot_id'),
})

/** Whether both are one machine in one boot: all its processes are seen from here. */
export const isSameBoot = (one: Host, other: Host): boolean =>
  one.bootId === other.bootId && one.machineId === other.machineId && one.name === other.name

function idIn(path: string): string {
  try {
    const id = readFileSync(path, 'latin1').trim().replaceAll('-', '').toLowerCase()
    return /^[0-9a-f]{32}$/.test(id) ? id : NONE
  } catch {
    return NONE
  }
}
