/**
 * A Ceph cluster for the life of a test: one monitor and some OSDs on sparse files, in a network
 * namespace. No manager: nothing here needs one.
 *
 *   const ceph = await CephRig.start(t, { osds: 3 })            // a namespace of its own
 *   const ceph = await CephRig.start(t, { netns: machine.netns, address: machine.address })   // or of a machine
 *   await ceph.createImage('data', '8G')                        // in the pool `thin`
 *   ceph.conf                                                   // ceph.conf, for whoever reaches `address`
 *   await ceph.run('rbd', 'ls', 'thin')                         // a program, with CEPH_CONF set
 *   await ceph.killOsd(0); await ceph.startOsd(0)
 *   await ceph.cut(); await ceph.heal()                         // its own namespace alone
 *
 * `CephRig.with` is the same for what is no test. The processes are children of the test and die
 * with it, whatever ends it. The teardown takes everything away: processes, namespace, folder.
 * Needs root, and the programs of `PROGRAMS`.
 */
import { type ChildProcess, execFile, spawn } from 'node:child_process'
import { randomUUID } from 'node:crypto'
import { once } from 'node:events'
import {
  appendFileSync,
  closeSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  openSync,
  readdirSync,
  readFileSync,
  rmSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import { promisify } from 'node:util'
import type { Test } from 'tap'

/** What has to be installed: ceph-mon, ceph-osd, ceph-common, iproute2, util-linux. */
export const PROGRAMS = ['ceph-mon', 'ceph-osd', 'ceph', 'rbd', 'ip', 'nsenter', 'setpriv']
/** The RADOS pool of all images. */
export const POOL = 'thin'
const GIB = 1024 ** 3
/** Milliseconds that the cluster has to get ready, on a machine with much else to do. */
const PATIENCE = 300_000

export interface CephRigOptions {
  /** How many OSDs: as many replicas of each object. Default: 1. */
  osds?: number
  /** The file of a network namespace that is there, with `address`. Default: one of its own. */
  netns?: string
  address?: string
  /** GiB that an OSD can hold; its file is sparse. */
  size?: number
  /** Where its folder is made. Default: the one for temporary files. */
  parent?: string
}

export class CephRig {
  readonly folder: string
  /** Path of ceph.conf. */
  readonly conf: string
  /** The servers'. */
  readonly address: string
  readonly netns: string
  readonly #nrOsds: number
  readonly #size: number
  /** The interface by which others reach a namespace of our own; null where it is not ours. */
  readonly #link: string | null
  readonly #daemons = new Map<string, ChildProcess>()

  /** Starts one; resolves when images can be made. */
  static async start(t: Test, options: CephRigOptions = {}): Promise<CephRig> {
    const rig = new CephRig(options)
    t.teardown(() => rig.stop())
    try {
      await rig.#start()
      return rig
    } catch (err) {
      t.comment(rig.logs())
      throw err
    }
  }

  /** Runs `use` with one, which is gone afterwards. */
  static async with<T>(options: CephRigOptions, use: (ceph: CephRig) => Promise<T>): Promise<T> {
    const rig = new CephRig(options)
    try {
      await rig.#start()
      return await use(rig)
    } finally {
      await rig.stop()
    }
  }

  private constructor({ osds = 1, netns, address, size = 8, parent = tmpdir() }: CephRigOptions) {
    this.folder = mkdtempSync(join(parent, 'ceph-'))
    this.conf = join(this.folder, 'ceph.conf')
    this.#nrOsds = osds
    this.#size = size
    // A test is one process with one such cluster: its id is in the names, and in the network.
    const id = process.pid % 4096
    this.#link = netns === undefined ? `ceph${process.pid}` : null
    this.netns = netns ?? `/run/netns/ceph${process.pid}`
    this.address = address ?? `10.${192 + (id >> 8)}.${id & 255}.2`
    for (const name of ['mon', 'run', 'log']) mkdirSync(join(this.folder, name))
    writeFileSync(this.conf, this.#configuration(randomUUID()))
  }

  /** What a program prints that runs beside the servers, with CEPH_CONF set. It has to succeed. */
  async run(program: string, ...args: string[]): Promise<string> {
    // Programs of Ceph wait for ever where the cluster does not answer.
    const command = ['--kill-after=5', '120', program, ...args]
    const env = { ...process.env, CEPH_CONF: this.conf }
    const options = { env, maxBuffer: 1 << 26 }
    const { stdout } = await promisify(execFile)(
      'nsenter',
      this.#inside('timeout', ...command),
      options,
    )
    return stdout.trimEnd()
  }

  /** @param size as `rbd` takes it */
  async createImage(name: string, size: string, features?: string): Promise<void> {
    const more = features === undefined ? [] : ['--image-feature', features]
    await this.run('rbd', 'create', '--size', size, ...more, `${POOL}/${name}`)
  }

  async removeImage(name: string): Promise<void> {
    await this.run('rbd', 'rm', '--no-progress', `${POOL}/${name}`)
  }

  /** A user `client.NAME` with the rights that a host of a thinfs pool needs. */
  async addUser(name: string): Promise<void> {
    const caps = ['mon', 'profile rbd', 'osd', `profile rbd pool=${POOL}`]
    const keyring = await this.run('ceph', 'auth', 'get-or-create', `client.${name}`, ...caps)
    appendFileSync(join(this.folder, 'keyring'), `${keyring}\n`)
  }

  /** The addresses that the cluster refuses. */
  async blocklist(): Promise<{ addr: string; until: string }[]> {
    const said = await this.run('ceph', 'osd', 'blocklist', 'ls', '--format=json')
    // After an empty line; ranges follow in the same one. Nothing where there are no entries.
    return JSON.parse(/\[[^\]]*\]/.exec(said)?.[0] ?? '[]')
  }

  /** Ends all entries of the blocklist now. */
  async emptyBlocklist(): Promise<void> {
    for (const { addr } of await this.blocklist()) {
      await this.run('ceph', 'osd', 'blocklist', 'rm', addr)
    }
  }

  /** Process ids of the daemons, by `mon` or `osd.0`. */
  get pids(): Record<string, number> {
    return Object.fromEntries([...this.#daemons].map(([name, { pid }]) => [name, pid!]))
  }

  async killOsd(index: number): Promise<void> {
    await this.#kill(`osd.${index}`)
  }

  /** Starts an OSD that was killed. It is up again when `ready` says so. */
  async startOsd(index: number): Promise<void> {
    const keyring = join(this.folder, `osd.${index}`, 'keyring')
    this.#spawn(`osd.${index}`, 'ceph-osd', '-i', String(index), '--keyring', keyring)
  }

  /** Resolves when all OSDs are up, and the placement groups there are active. */
  async ready(): Promise<void> {
    await this.#until('the OSDs are up', async () => {
      const { num_up_osds: up } = JSON.parse(await this.run('ceph', 'osd', 'stat', '--format=json'))
      return up === this.#nrOsds
    })
  }

  /** Nobody outside of the namespace reaches the cluster any more. */
  async cut(): Promise<void> {
    await ip('link', 'set', this.#own(), 'down')
  }

  async heal(): Promise<void> {
    await ip('link', 'set', this.#own(), 'up')
  }

  /** Takes everything away. */
  async stop(): Promise<void> {
    await Promise.all([...this.#daemons.keys()].map(name => this.#kill(name)))
    if (this.#link !== null) await ip('netns', 'del', this.#link).catch(() => {})
    if (this.#link !== null) await ip('link', 'del', this.#link).catch(() => {})
    rmSync(this.folder, { recursive: true, force: true })
  }

  /** The end of each daemon's log. */
  logs(): string {
    const folder = join(this.folder, 'log')
    return readdirSync(folder)
      .map(name => `${name}:\n${readFileSync(join(folder, name), 'utf8').slice(-2000)}`)
      .join('\n')
  }

  // --- inside ---

  async #start(): Promise<void> {
    if (this.#link !== null) await this.#makeNamespace()
    await this.#startMonitor()
    await Promise.all(Array.from({ length: this.#nrOsds }, (_, i) => this.#makeOsd(i)))
    await this.ready()
    await this.run('ceph', 'osd', 'pool', 'create', POOL, '8', '8')
    await this.run('rbd', 'pool', 'init', POOL)
  }

  #own(): string {
    if (this.#link !== null) return this.#link
    throw new Error(`${this.netns} is the namespace of somebody else, who can cut it off`)
  }

  #inside(...command: string[]): string[] {
    return [`--net=${this.netns}`, ...command]
  }

  async #makeNamespace(): Promise<void> {
    const link = this.#own()
    const gateway = this.address.replace(/2$/, '1')
    await ip('netns', 'add', link)
    const inside = (...args: string[]): Promise<void> => ip('-n', link, ...args)
    await inside('link', 'set', 'lo', 'up')
    await ip('link', 'add', link, 'type', 'veth', 'peer', 'name', 'eth0', 'netns', link)
    await ip('addr', 'add', `${gateway}/30`, 'dev', link)
    await ip('link', 'set', link, 'up')
    await inside('addr', 'add', `${this.address}/30`, 'dev', 'eth0')
    await inside('link', 'set', 'eth0', 'up')
  }

  async #startMonitor(): Promise<void> {
    const { folder, address } = this
    const keyring = join(folder, 'keyring')
    const map = join(folder, 'monmap')
    const all = ['mon', 'osd', 'mgr', 'mds'].flatMap(name => ['--cap', name, 'allow *'])
    const make = ['--gen-key', '-n']
    await this.run('ceph-authtool', '--create-keyring', keyring, ...make, 'mon.', ...all)
    await this.run('ceph-authtool', keyring, ...make, 'client.admin', ...all)
    const at = `[v2:${address}:3300,v1:${address}:6789]`
    const fsid = /^fsid = (.*)$/m.exec(readFileSync(this.conf, 'utf8'))![1]!
    await this.run('monmaptool', '--create', '--fsid', fsid, '--addv', 'a', at, map)
    const files = ['--monmap', map, '--keyring', keyring]
    await this.run('ceph-mon', '-c', this.conf, '--mkfs', '-i', 'a', ...files)
    this.#spawn('mon', 'ceph-mon', '-i', 'a')
    await this.#until('the monitor answers', async () => {
      await this.run('ceph', '-s', '--connect-timeout=5')
      return true
    })
  }

  async #makeOsd(index: number): Promise<void> {
    const folder = join(this.folder, `osd.${index}`)
    mkdirSync(folder)
    const uuid = randomUUID()
    const keyring = join(folder, 'keyring')
    const key = await this.run('ceph-authtool', '--gen-print-key')
    const secret = join(folder, 'secret')
    writeFileSync(secret, JSON.stringify({ cephx_secret: key }))
    await this.run('ceph', 'osd', 'new', uuid, String(index), '-i', secret)
    const name = ['--name', `osd.${index}`, '--add-key', key]
    await this.run('ceph-authtool', '--create-keyring', keyring, ...name)
    const own = ['-i', String(index), '--keyring', keyring]
    await this.run('ceph-osd', '-c', this.conf, ...own, '--mkfs', '--osd-uuid', uuid)
    await this.startOsd(index)
  }

  #spawn(name: string, program: string, ...args: string[]): void {
    const output = openSync(join(this.folder, 'log', `${name}.out`), 'a')
    const command = this.#inside(program, '-c', this.conf, '--foreground', ...args)
    const child = spawn('setpriv', ['--pdeathsig', 'KILL', 'nsenter', ...command], {
      stdio: ['ignore', output, output],
    })
    closeSync(output)
    this.#daemons.set(name, child)
  }

  async #kill(name: string): Promise<void> {
    const child = this.#daemons.get(name)
    if (child === undefined) return
    this.#daemons.delete(name)
    if (child.exitCode !== null || child.signalCode !== null) return
    const ended = once(child, 'exit')
    child.kill('SIGKILL')
    await ended
  }

  async #until(what: string, isSo: () => Promise<boolean>): Promise<void> {
    const end = Date.now() + PATIENCE
    let why: unknown
    while (Date.now() < end) {
      for (const [name, { exitCode }] of this.#daemons) {
        if (exitCode !== null) throw new Error(`${name} has ended with ${exitCode}`)
      }
      try {
        if (await isSo()) return
      } catch (err) {
        why = err
      }
      await delay(200)
    }
    throw new Error(`${what}: not in time`, { cause: why })
  }

  #configuration(fsid: string): string {
    const { folder, address } = this
    const nrOsds = this.#nrOsds
    return `[global]
fsid = ${fsid}
mon_initial_members = a
mon_host = [v2:${address}:3300/0,v1:${address}:6789/0]
auth_cluster_required = cephx
auth_service_required = cephx
auth_client_required = cephx
keyring = ${folder}/keyring
osd_pool_default_size = ${nrOsds}
osd_pool_default_min_size = ${nrOsds > 2 ? 2 : 1}
osd_pool_default_pg_autoscale_mode = off
# All OSDs are on one host.
osd_crush_chooseleaf_type = 0
mon_allow_pool_size_one = true
mon_warn_on_pool_no_redundancy = false
mon_osd_min_down_reporters = 1
# A full disk of the machine is none of the cluster.
mon_data_avail_crit = 1
mon_data_avail_warn = 1
auth_allow_insecure_global_id_reclaim = false
debug_ms = 0
debug_osd = 0
debug_bluestore = 0
debug_rocksdb = 0
debug_mon = 0
debug_paxos = 0
[mon]
public_addr = ${address}
mon_data = ${folder}/mon/$id
run_dir = ${folder}/run
admin_socket = ${folder}/run/$name.asok
log_file = ${folder}/log/$name.log
mon_memory_target = 256M
rocksdb_cache_size = 16M
[osd]
public_addr = ${address}
cluster_addr = ${address}
osd_data = ${folder}/osd.$id
run_dir = ${folder}/run
admin_socket = ${folder}/run/$name.asok
log_file = ${folder}/log/$name.log
osd_objectstore = bluestore
bluestore_block_create = true
bluestore_block_size = ${this.#size * GIB}
bluestore_block_db_create = false
bluestore_block_wal_create = false
# Without these an OSD takes 900 MB.
bluestore_cache_autotune = false
bluestore_cache_size = 67108864
osd_memory_target = 939524096
osd_op_num_shards = 2
osd_op_num_threads_per_shard = 1
osd_max_pg_log_entries = 500
osd_min_pg_log_entries = 100
osd_heartbeat_interval = 2
osd_heartbeat_grace = 6
osd_class_load_list = *
osd_class_default_list = *
[client]
rbd_default_features = 61
`
  }
}

const ip = async (...args: string[]): Promise<void> => {
  await promisify(execFile)('ip', args)
}

/** What a test says that is skipped for want of programs; false where all are there. */
export function lacksCeph(): string | false {
  const path = [...(process.env.PATH ?? '').split(':'), '/usr/sbin', '/sbin']
  const missing = PROGRAMS.filter(name => !path.some(folder => existsSync(join(folder, name))))
  return missing.length === 0 ? false : `not installed: ${missing.join(', ')}`
}
