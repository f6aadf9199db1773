/**
 * The attributes that stat(2) shows of a mount's files: of each volume, and of the folder that they
 * are in.
 */
import { constants } from 'node:fs'
import { SECTOR_SIZE } from '../base/index.js'
import type { Attributes } from '../fuse/index.js'
import { IdMap, type Volume, type Volumes } from '../volumes/index.js'

export const ROOT = 1
/** Inode numbers of volumes are device ids plus this. */
export const FIRST_VOLUME = 2

/** The inode number of a volume. */
export const inodeOf = (devId: number): number => devId + FIRST_VOLUME

const { S_IFDIR, S_IFREG } = constants

export class VolumeAttributes {
  readonly #volumes: Volumes
  readonly #owner: { uid: number; gid: number }
  readonly #mounted: number
  readonly users = IdMap.own('uid')
  readonly groups = IdMap.own('gid')

  /** @param owner whose the root is: who mounted it. @param mounted seconds since 1970 */
  constructor(volumes: Volumes, owner: { uid: number; gid: number }, mounted: number) {
    this.#volumes = volumes
    this.#owner = owner
    this.#mounted = mounted
  }

  of(volume: Volume): Attributes {
    const { entry, device } = volume
    return {
      ino: inodeOf(volume.devId),
      generation: volume.generation,
      size: device.size,
      blocks: this.#volumes.infos.mappedBytes(volume) / SECTOR_SIZE,
      mode: S_IFREG | entry.mode,
      nlink: entry.removed && !volume.awaited ? 0 : 1,
      uid: this.users.inside(entry.uid),
      gid: this.groups.inside(entry.gid),
      atime: volume.modified / 1000,
      mtime: volume.modified / 1000,
      ctime: Math.max(volume.modified, volume.changed) / 1000,
      blockSize: this.#volumes.pool.blockSize,
    }
  }

  ofRoot(): Attributes {
    return {
      ino: ROOT,
      generation: 0,
      size: 0,
      blocks: 0,
      // allow_other decides whether other users get here at all; a volume has its own bits.
      mode: S_IFDIR | 0o755,
      nlink: 2,
      uid: this.#owner.uid,
      gid: this.#owner.gid,
      atime: this.#mounted,
      mtime: this.#mounted,
      ctime: this.#mounted,
      blockSize: this.#volumes.pool.blockSize,
    }
  }
}
