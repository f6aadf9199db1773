/**
 * The ioctls of device-mapper: their structures, as on every 64-bit little-endian machine.
 *
 * A call's buffer is DM_IOCTL and, from `dataStart`, the payload of its command. Source:
 * include/uapi/linux/dm-ioctl.h of Linux 6.18.
 */
import { layout } from '../base/index.js'

/** The type byte of all commands. */
export const DM_IOCTL_TYPE = 0xfd

/** Command numbers: the low byte of the ioctl. */
export const DM_COMMAND = {
  VERSION: 0,
  REMOVE_ALL: 1,
  LIST_DEVICES: 2,
  DEV_CREATE: 3,
  DEV_REMOVE: 4,
  DEV_RENAME: 5,
  DEV_SUSPEND: 6,
  DEV_STATUS: 7,
  DEV_WAIT: 8,
  TABLE_LOAD: 9,
  TABLE_CLEAR: 10,
  TABLE_DEPS: 11,
  TABLE_STATUS: 12,
  LIST_VERSIONS: 13,
  TARGET_MSG: 14,
  DEV_SET_GEOMETRY: 15,
  DEV_ARM_POLL: 16,
  GET_TARGET_VERSION: 17,
} as const

export type DmCommand = keyof typeof DM_COMMAND

const NAMES = new Map<number, DmCommand>(
  Object.entries(DM_COMMAND).map(([name, nr]) => [nr, name as DmCommand]),
)

/** The command that has a number; null for none. */
export const commandOf = (nr: number): DmCommand | null => NAMES.get(nr) ?? null

export const DM_FLAG = {
  READONLY: 1 << 0,
  /** In: suspend, not resume. Out: the device is suspended. */
  SUSPEND: 1 << 1,
  /** `dev` holds the number that the device is to have. */
  PERSISTENT_DEV: 1 << 3,
  /** TABLE_STATUS gives tables, not status. */
  STATUS_TABLE: 1 << 4,
  ACTIVE_PRESENT: 1 << 5,
  INACTIVE_PRESENT: 1 << 6,
  BUFFER_FULL: 1 << 8,
  /** The open count is not asked for. */
  SKIP_BDGET: 1 << 9,
  /** Suspend without freezing the filesystem. */
  SKIP_LOCKFS: 1 << 10,
  NOFLUSH: 1 << 11,
  QUERY_INACTIVE_TABLE: 1 << 12,
  UEVENT_GENERATED: 1 << 13,
  /** DEV_RENAME sets the uuid. */
  UUID: 1 << 14,
  SECURE_DATA: 1 << 15,
  DATA_OUT: 1 << 16,
  DEFERRED_REMOVE: 1 << 17,
  INTERNAL_SUSPEND: 1 << 18,
} as const

/** The version answered: with it a list of devices has event numbers and uuids. */
export const DM_VERSION = [4, 48, 0] as const

export const DM_NAME_SIZE = 128
export const DM_UUID_SIZE = 129

export const DM_IOCTL = layout('dm_ioctl', 312, {
  major: [0, 'u32', 'version'],
  minor: [4, 'u32', ''],
  patch: [8, 'u32', ''],
  dataSize: [12, 'u32', 'bytes of the whole buffer, this structure included'],
  dataStart: [16, 'u32', 'where the payload begins'],
  targetCount: [20, 'u32', ''],
  openCount: [24, 'i32', ''],
  flags: [28, 'u32', 'DM_FLAG'],
  eventNr: [32, 'u32', 'out: the counter of events; in: udev flags and cookie'],
  padding: [36, 'u32', ''],
  dev: [40, 'u64', 'device number'],
  name: [48, 'bytes:128', 'ended by NUL'],
  uuid: [176, 'bytes:129', 'ended by NUL'],
  data: [305, 'bytes:7', 'padding'],
})
/**
 * Bytes of DM_IOCTL without its padding: the least `dataSize`, and that of an answer without
 * payload.
 */
export const DM_IOCTL_DATA = DM_IOCTL.at.data

/** The parameters follow, ended by NUL, then padding to a multiple of 8. */
export const DM_TARGET_SPEC = layout('dm_target_spec', 40, {
  sectorStart: [0, 'u64', ''],
  length: [8, 'u64', 'sectors'],
  status: [16, 'i32', 'zero'],
  next: [20, 'u32', 'in: from this one to the next; out: from the first one to the next'],
  targetType: [24, 'bytes:16', 'ended by NUL'],
})

/** The name follows, ended by NUL; at the next multiple of 8 DM_NAME_LIST_EVENT, then the uuid. */
export const DM_NAME_LIST = layout('dm_name_list', 12, {
  dev: [0, 'u64', 'device number; 0: there are none'],
  next: [8, 'u32', 'from this one to the next, 0 for none'],
})
export const DM_NAME_LIST_EVENT = layout('dm_name_list event', 8, {
  eventNr: [0, 'u32', ''],
  flags: [4, 'u32', '1: the uuid follows; 2: there is none'],
})

/** The name follows, ended by NUL, then padding to a multiple of 8. */
export const DM_TARGET_VERSIONS = layout('dm_target_versions', 16, {
  next: [0, 'u32', 'from this one to the next, 0 for none'],
  major: [4, 'u32', ''],
  minor: [8, 'u32', ''],
  patch: [12, 'u32', ''],
})

/** Device numbers follow, 8 bytes each. */
export const DM_TARGET_DEPS = layout('dm_target_deps', 8, {
  count: [0, 'u32', ''],
  padding: [4, 'u32', 'zero'],
})

/** The message follows, ended by NUL. */
export const DM_TARGET_MSG = layout('dm_target_msg', 8, { sector: [0, 'u64', ''] })

export interface DeviceNumber {
  major: number
  minor: number
}

/** As stat(2) and dm_ioctl have it: huge_encode_dev() of the kernel, for majors below 4096. */
export const encodeDevice = ({ major, minor }: DeviceNumber): number =>
  (minor % 256) + major * 2 ** 8 + Math.floor(minor / 256) * 2 ** 20

export const decodeDevice = (dev: number): DeviceNumber => ({
  major: Math.floor(dev / 2 ** 8) % 2 ** 12,
  minor: (dev % 2 ** 8) + Math.floor(dev / 2 ** 20) * 2 ** 8,
})

export const nameOfDevice = ({ major, minor }: DeviceNumber): string => `${major}:${minor}`
