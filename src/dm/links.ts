/**
 * `/dev/VG/LV`, which LVM leaves to udev, whose rules match the kernel's own devices alone.
 *
 * Source: 11-dm-lvm.rules; dmsetup(8), splitname.
 */
import { lstatSync, mkdirSync, readlinkSync, rmdirSync, symlinkSync, unlinkSync } from 'node:fs'
import type { Device } from './device-table.js'

/** `LVM-` and the ids of the group and of the volume; those of inner devices have more. */
const LVM_UUID_LENGTH = 68
/** DM_UDEV_DISABLE_SUBSYSTEM_RULES_FLAG and DM_UDEV_DISABLE_LIBRARY_FALLBACK of libdevmapper.h. */
const DISABLE_SUBSYSTEM_RULES = 0x2
const DISABLE_LIBRARY_FALLBACK = 0x20

/** Group and volume of a device that LVM shows to users; null for others. */
export function volumeOf({ name, uuid }: Pick<Device, 'name' | 'uuid'>): [string, string] | null {
  if (!uuid.startsWith('LVM-') || uuid.length !== LVM_UUID_LENGTH) return null
  // One hyphen separates; those of a name are doubled.
  const parts = /^((?:[^-]|--)+)-((?:[^-]|--)+)$/.exec(name)
  if (parts === null) return null
  const [group, volume] = [parts[1]!, parts[2]!].map(part => part.replaceAll('--', '-'))
  const isPath = [group, volume].some(part => part === '.' || part === '..')
  return isPath ? null : [group!, volume!]
}

export class Links {
  readonly #folder: string

  /** @param folder /dev */
  constructor(folder: string) {
    this.#folder = folder
  }

  /**
   * Makes the link of a device, unless something else has its path. No command fails for want of a
   * link: by the kernel's device-mapper, links are none of its business.
   */
  up(device: Device, udevFlags: number): void {
    const isHidden =
      (udevFlags & DISABLE_SUBSYSTEM_RULES) !== 0 && (udevFlags & DISABLE_LIBRARY_FALLBACK) === 0
    const volume = volumeOf(device)
    if (volume === null || isHidden) return
    const [group, name] = volume
    const link = `${this.#folder}/${group}/${name}`
    try {
      if (lstatSync(link, { throwIfNoEntry: false }) !== undefined) return
      mkdirSync(`${this.#folder}/${group}`, { recursive: true })
      symlinkSync(targetOf(device), link)
    } catch {
      // The group has the name of something else in /dev, or there is no room.
    }
  }

  /** Removes the link, and the folder of the group when it was the last. */
  down(device: Device): void {
    const volume = volumeOf(device)
    if (volume === null) return
    const [group, name] = volume
    try {
      const link = `${this.#folder}/${group}/${name}`
      if (readlinkSync(link) === targetOf(device)) unlinkSync(link)
      rmdirSync(`${this.#folder}/${group}`)
    } catch {
      // Not there, or others are in it.
    }
  }
}

const targetOf = ({ name }: Device): string => `../mapper/${name}`
