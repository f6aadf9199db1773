/**
 * A volume of GlusterFS: three machines with a brick each, all three of which have every file; and
 * the way to it from other machines.
 */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import type { Test } from 'tap'
import { until } from '../../support/mounted-pool.js'
import type { Machine, Network } from './machine.js'

const VOLUME = 'gv'
/** Where machines have it mounted. */
export const SHARED = '/run/shared'

/**
 * Seconds after which servers take a client for dead whose connection says nothing any more, and
 * clients a server. Default: 42 each.
 */
const PATIENCE = 5

const OPTIONS: Readonly<Record<string, string | number>> = {
  // Who has lost a lock cannot use the descriptor any more that had it.
  'client.strict-locks': 'on',
  'cluster.quorum-type': 'auto',
  'network.ping-timeout': PATIENCE,
  'server.tcp-user-timeout': PATIENCE,
  'client.tcp-user-timeout': PATIENCE,
}

export class Gluster {
  readonly servers: readonly Machine[]

  private constructor(servers: readonly Machine[]) {
    this.servers = servers
  }

  /** Starts the servers and makes the volume. */
  static async start(t: Test, network: Network): Promise<Gluster> {
    const servers = await Promise.all(['g1', 'g2', 'g3'].map(name => network.machine(t, name)))
    await Promise.all(servers.map(startServer))
    const gluster = new Gluster(servers)
    const [, ...others] = servers
    for (const { address } of others) await gluster.#cli('peer', 'probe', address)
    await until(async () => {
      const peers = await gluster.#cli('peer', 'status')
      return peers.match(/Peer in Cluster \(Connected\)/g)?.length === others.length
    })
    const bricks = servers.map(({ address, folder }) => `${address}:${join(folder, 'brick')}`)
    await gluster.#cli('volume', 'create', VOLUME, 'replica', '3', ...bricks, 'force')
    for (const [name, value] of Object.entries(OPTIONS)) {
      await gluster.#cli('volume', 'set', VOLUME, name, String(value))
    }
    await gluster.#cli('volume', 'start', VOLUME)
    return gluster
  }

  /** Mounts the volume at SHARED. */
  async mountOn(machine: Machine): Promise<void> {
    const from = this.servers.map(({ address }) => `--volfile-server=${address}`)
    await machine.sh(
      `mkdir -p ${SHARED}
       mount -t tmpfs log /var/log/glusterfs
       glusterfs "$@" ${SHARED}
       until mountpoint -q ${SHARED} && ls ${SHARED} > /dev/null; do sleep 0.1; done`,
      ...from,
      `--volfile-id=${VOLUME}`,
    )
  }

  /** gluster(8) on the first server. */
  #cli(...args: string[]): Promise<string> {
    return this.servers[0]!.run('gluster', '--mode=script', ...args)
  }

  /** Kills the process that has the brick of a server, of which no other knows beforehand. */
  async killBrick(server: Machine): Promise<void> {
    await server.sh('kill -KILL $(pidof glusterfsd)')
  }

  /** Starts the bricks that have none. */
  async startBricks(): Promise<void> {
    await this.#cli('volume', 'start', VOLUME, 'force')
  }

  /** Resolves when a machine that has the volume mounted is connected to enough bricks to write. */
  async isReachedBy(machine: Machine): Promise<void> {
    const touch = (): Promise<{ status: number }> => machine.attempt('touch', `${SHARED}/reached`)
    await until(async () => (await touch()).status === 0)
  }

  /** Resolves when every brick has what it has missed. */
  async healed(): Promise<void> {
    await until(async () => {
      const info = await this.#cli('volume', 'heal', VOLUME, 'info', 'summary')
      return !/in heal pending: [1-9]|Status: (?!Connected)/.test(info)
    })
  }
}

async function startServer(server: Machine): Promise<void> {
  mkdirSync(join(server.folder, 'brick'))
  // What a server knows is in its memory: it is not to be started again.
  await server.sh(`
    mount -t tmpfs state /var/lib/glusterd
    mount -t tmpfs log /var/log/glusterfs
    mkdir -p /run/gluster
    glusterd
    until gluster --mode=script peer status > /dev/null 2>&1; do sleep 0.2; done`)
}
