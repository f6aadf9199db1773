/**
 * The payloads of device-mapper's ioctls: records in a caller's buffer, one behind the other.
 *
 * Source: include/uapi/linux/dm-ioctl.h; drivers/md/dm-ioctl.c for what does not fit.
 */
import { isUtf8 } from 'node:buffer'
import { refused, viewOf } from '../base/index.js'
import {
  type DeviceNumber,
  DM_FLAG,
  DM_IOCTL,
  DM_NAME_LIST,
  DM_NAME_LIST_EVENT,
  DM_TARGET_DEPS,
  DM_TARGET_SPEC,
  DM_TARGET_VERSIONS,
  encodeDevice,
} from './abi.js'
import type { Device } from './device-table.js'
import type { Line, TARGET_VERSIONS } from './targets.js'

/** A call being answered: the header's fields, which the command changes. */
export interface Call {
  pid: number
  signal: AbortSignal
  isResent: boolean
  flags: number
  eventNr: number
  targetCount: number
  openCount: number
  dev: number
  name: string
  uuid: string
  dataStart: number
  /** From `dataStart`, as the caller has given it. */
  data: Buffer
  /** Bytes that the payload of the answer may have. */
  room: number
  payload: Buffer | null
  /** `dataSize` of an answer without a payload. */
  answerSize: number
}

/**
 * The lines of TABLE_LOAD, each when it is asked for: the first that is wrong ends a table, however
 * long it claims to be. @throws EINVAL for what does not fit the buffer
 */
export function* linesOf({ data, targetCount }: Call): Generator<Line, void> {
  if (targetCount === 0) throw refused('EINVAL', 'populate_table: no targets specified')
  const view = viewOf(data)
  let at = 0
  for (let i = 0; i < targetCount; i++) {
    if (at + DM_TARGET_SPEC.size > data.length) throw refused('EINVAL', 'unable to find target')
    const { sectorStart: start, length, next } = DM_TARGET_SPEC.read(view, at)
    const type = textAt(data, at + DM_TARGET_SPEC.at.targetType, 15)
    const params = stringIn(data.subarray(at + DM_TARGET_SPEC.size))
    if (params === null) throw refused('EINVAL', 'unable to find target')
    yield { start, length, type, params }
    if (i + 1 < targetCount && (next < DM_TARGET_SPEC.size || next % 8 !== 0)) {
      throw refused('EINVAL', 'unable to find target')
    }
    at += next
  }
}

/** Lines as records, as far as there is room. */
export function fillLines(call: Call, lines: readonly Line[]): void {
  const parts: Buffer[] = []
  let next = 0
  let end = 0
  for (const { start, length, type, params } of lines) {
    const text = Buffer.from(`${params}\0`)
    end = next + DM_TARGET_SPEC.size + text.length
    if (end > call.room) {
      call.flags |= DM_FLAG.BUFFER_FULL
      break
    }
    const spec = Buffer.alloc(align(DM_TARGET_SPEC.size + text.length))
    next += spec.length
    DM_TARGET_SPEC.write(viewOf(spec), 0, { sectorStart: start, length, status: 0, next })
    spec.write(type, DM_TARGET_SPEC.at.targetType, 15)
    text.copy(spec, DM_TARGET_SPEC.size)
    parts.push(spec)
    call.payload = Buffer.concat(parts).subarray(0, end)
  }
}

/** @param withUuids who asks knows that they can follow */
export function namesOf(devices: readonly Device[], withUuids: boolean): Buffer {
  return chain(devices, ({ name, uuid, eventNr, number }) => {
    const head = DM_NAME_LIST.size + Buffer.byteLength(name) + 1
    const event = align(head)
    const end = event + DM_NAME_LIST_EVENT.size
    const hasUuid = withUuids && uuid !== ''
    const record = Buffer.alloc(hasUuid ? align(end + Buffer.byteLength(uuid) + 1) : end)
    const view = viewOf(record)
    DM_NAME_LIST.write(view, 0, { dev: encodeDevice(number) })
    record.write(name, DM_NAME_LIST.size)
    DM_NAME_LIST_EVENT.write(view, event, { eventNr, flags: withUuids ? (hasUuid ? 1 : 2) : 0 })
    if (hasUuid) record.write(uuid, end)
    return { record, nextAt: DM_NAME_LIST.at.next }
  })
}

export function versionsOf(targets: typeof TARGET_VERSIONS): Buffer {
  return chain(targets, ([name, [major, minor, patch]]) => {
    const record = Buffer.alloc(align(DM_TARGET_VERSIONS.size + Buffer.byteLength(name) + 1))
    DM_TARGET_VERSIONS.write(viewOf(record), 0, { major: major!, minor: minor!, patch: patch! })
    record.write(name, DM_TARGET_VERSIONS.size)
    return { record, nextAt: DM_TARGET_VERSIONS.at.next }
  })
}

export function depsOf(devices: readonly DeviceNumber[]): Buffer {
  const bytes = Buffer.alloc(DM_TARGET_DEPS.size + 8 * devices.length)
  DM_TARGET_DEPS.write(viewOf(bytes), 0, { count: devices.length, padding: 0 })
  devices.forEach((device, i) => {
    bytes.writeBigUInt64LE(BigInt(encodeDevice(device)), DM_TARGET_DEPS.size + 8 * i)
  })
  return bytes
}

/** Records one behind the other, each of which says how far the next one is. */
function chain<T>(
  items: readonly T[],
  encodeItem: (item: T) => { record: Buffer; nextAt: number },
): Buffer {
  const parts = items.map((item, i) => {
    const { record, nextAt } = encodeItem(item)
    if (i + 1 < items.length) record.writeUInt32LE(record.length, nextAt)
    return record
  })
  return Buffer.concat(parts)
}

/** Makes `payload` the answer's, or says that it does not fit. */
export function fill(call: Call, payload: Buffer): void {
  if (payload.length > call.room) call.flags |= DM_FLAG.BUFFER_FULL
  else call.payload = payload
}

export function encode(header: Buffer, call: Call): Buffer {
  const { payload, targetCount, openCount, flags, eventNr, dev, name, uuid, answerSize } = call
  DM_IOCTL.write(viewOf(header), 0, {
    dataSize: payload === null ? answerSize : DM_IOCTL.size + payload.length,
    dataStart: payload === null ? call.dataStart : DM_IOCTL.size,
    ...{ targetCount, openCount, flags: flags >>> 0, eventNr, dev },
  })
  header.fill(0, DM_IOCTL.at.name, DM_IOCTL.size)
  header.write(name, DM_IOCTL.at.name)
  header.write(uuid, DM_IOCTL.at.uuid)
  return header
}

export function set(call: Call, flag: number, on: boolean): void {
  call.flags = on ? call.flags | flag : call.flags & ~flag
}

/** The text of at most `most` bytes at byte `at`, which a NUL ends. */
export function textAt(bytes: Buffer, at: number, most: number): string {
  const field = bytes.subarray(at, at + most)
  const end = field.indexOf(0)
  return utf8(end < 0 ? field : field.subarray(0, end))
}

/** The text that `bytes` begin with; null when no NUL ends it. */
export function stringIn(bytes: Buffer): string | null {
  const end = bytes.indexOf(0)
  return end < 0 ? null : utf8(bytes.subarray(0, end))
}

/** @throws EINVAL for what is not UTF-8: it could not be shown in /dev/mapper */
function utf8(bytes: Buffer): string {
  if (!isUtf8(bytes)) throw refused('EINVAL', 'a name or text that is not UTF-8')
  return bytes.toString()
}

const align = (size: number): number => Math.ceil(size / 8) * 8
