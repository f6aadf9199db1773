// Goal: a store on another machine is a store as any other. Method: the suite of all stores, over a
// disk of nbdkit, with a cache that has room for all of it and with one that has not.
import { closeSync } from 'node:fs'
import type { Test } from 'tap'
import { KIB } from '../../src/base/index.js'
import { NbdDisk } from '../../src/nbd/index.js'
import { CacheMemory, RemoteStore } from '../../src/remote/index.js'
import { storeContract } from '../contract/store.js'
import { ServerProcess, shortFolder } from '../support/nbd-servers.js'

const SLOT = 64 * KIB

async function open(t: Test, size: number, slots: number): Promise<RemoteStore> {
  const server = await ServerProcess.nbdkit(t, shortFolder(t), 'memory', `${size}`)
  const disk = await NbdDisk.connect(server.address)
  const cache = CacheMemory.create(slots * SLOT)
  const store = await RemoteStore.open({ disk, cache, granule: 4 * KIB })
  t.teardown(() => {
    store.close()
    closeSync(cache)
  })
  return store
}

for (const slots of [4, 64]) {
  storeContract(`remote, ${slots} slots`, (t, size) => open(t, size, slots), { grows: false })
}
