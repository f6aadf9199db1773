import type { PoolConfig } from '../../src/config/index.js'
import { VolumeFs } from '../../src/fs/index.js'
import { Lab } from '../../src/lab/index.js'
import { HeldFolder } from '../../src/storage/index.js'
import { type OpenOptions, openPool, type Volumes } from '../../src/volumes/index.js'

/** A pool that is open in this process, with its lab, as an engine has them. */
export interface OpenLab {
  volumes: Volumes
  fs: VolumeFs
  lab: Lab
  /** What was told of recordings and injections. */
  told: string[]
  /** Makes a volume. @returns its inode number */
  create(name: string, size: number): Promise<number>
  close(): Promise<void>
}

export async function openLab(
  config: PoolConfig,
  options: OpenOptions & { takesOver?: boolean } = {},
): Promise<OpenLab> {
  const { volumes, close } = await openPool(config, options)
  const folder = HeldFolder.open(config.folder)
  const told: string[] = []
  const lab = await Lab.open({
    ...{ volumes, folder, takesOver: options.takesOver ?? false, readOnly: false },
    onWarning: message => told.push(message),
    onChange: (what, volume) => told.push(`${volume}: ${what}`),
    invalidate: async () => {},
  })
  const fs = new VolumeFs(volumes, { uid: 0, gid: 0 }, 1000)
  // Timers of a pool keep no process alive.
  const alive = setInterval(() => {}, 1000)
  return {
    ...{ volumes, fs, lab, told },
    async create(name, size) {
      await volumes.create({ name, size })
      return fs.lookup(1, name).ino
    },
    async close() {
      clearInterval(alive)
      folder.close()
      await close()
    },
  }
}
