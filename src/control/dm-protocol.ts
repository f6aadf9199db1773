/**
 * Requests of commands to the service: JSON-RPC over the control socket. All versions of thinfs
 * understand `dm_stop`, and find the version in the answer to `dm_status`.
 */
import { RequestType0 } from 'vscode-jsonrpc/node'
import type { WireError } from './protocol.js'

export interface DmDeviceStatus {
  name: string
  uuid: string
  /** Such as `7:1000`. */
  number: string
  loop: string
  suspended: boolean
  readOnly: boolean
  deferredRemove: boolean
  /** How many have it open, tables that name it included. */
  open: number
  eventNr: number
  /** Lines of the table that serves, as dmsetup prints them. */
  table: string[]
  /** Lines of the table that waits for a resume. */
  inactive: string[]
  /** Numbers of the devices that the table names. */
  below: string[]
}

export interface DmStatus {
  /** PROTOCOL of the service. */
  protocol?: number
  pid: number
  enginePid: number
  devices: DmDeviceStatus[]
}

export const DM_STATUS = new RequestType0<DmStatus, WireError>('dm_status')
/** Answered when all is taken down. */
export const DM_STOP = new RequestType0<null, WireError>('dm_stop')
