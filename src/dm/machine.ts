/** The machine around the devices, as the service asks it. */
import type { DeviceNumber } from './abi.js'
import type { Device } from './device-table.js'
import type { Loops } from './loops.js'

/** A device that is not ours, and where its bytes are. */
export interface Lower {
  path: string
  /** Bytes. */
  offset: number
  /** Sectors. */
  size: number
  readOnly: boolean
}

/** The machine around the devices. */
export interface Machine {
  loops: Loops
  /**
   * Freezes the filesystem that is mounted from the device, wherever that is.
   * @returns what thaws it; null when there is none
   */
  freeze(device: Device): Promise<(() => Promise<void>) | null>
  /** Thaws what a service has frozen that was killed. */
  thaw(device: Device): Promise<void>
  /** How many have the device open; tables that name it not counted. */
  openCount(device: Device): Promise<number>
  /** Whether somebody has the device open for longer than a look at what is on it takes. */
  isHeld(device: Device): Promise<boolean>
  /** Whether requests to the device are under way. */
  hasRequests(device: Device): boolean
  /** @param pid of who wrote the word @throws BAD_ARGUMENT with ENODEV or ENXIO */
  lookUp(word: string, pid: number): Promise<DeviceNumber>
  /** @throws BAD_ARGUMENT, ENXIO, when there is no such device */
  lower(device: DeviceNumber): Promise<Lower>
  /** Keeps others from using it exclusively, until as many `unclaim`s. @throws EBUSY */
  claim(device: DeviceNumber): Promise<void>
  unclaim(device: DeviceNumber): void
  /** A device can be used under its name, or not any more. @param udevFlags of who says so */
  linkUp(device: Device, udevFlags: number): void
  linkDown(device: Device): void
}
