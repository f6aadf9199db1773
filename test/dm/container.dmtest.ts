// Goal: a container that was started as docs/OPERATIONS.md has it mounts a pool, and in any other
// the doctor says what it lacks. Method: Debian's dockerd and docker, an image made here, in it the
// machine's own programs: mkfs, fuse2fs, e2fsck, qemu-nbd and thin_check are the judges.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readFileSync, realpathSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import type { Finding } from '../../src/doctor/index.js'
import { LET_GO } from '../support/mount-namespace.js'
import { attempt, type Outcome, run, until } from '../support/mounted-pool.js'
import { makeImage } from '../support/oci-image.js'

const ROOT = resolve(import.meta.dirname, '../..')

/** With a folder for all that it keeps. The machine's /run has another one's. */
const DAEMON = `${LET_GO}
mount --make-rprivate /
let_go /none
mount -t tmpfs thinfs-test /run
exec dockerd --data-root "$1/docker" --exec-root /run/docker -H "unix://$1/socket" \
  -p /run/docker.pid --iptables=false --ip-forward=false --ip-masq=false --bridge=none \
  --storage-driver=vfs > "$1/log" 2>&1
`

/** This machine's programs, in the place of an image that has them. */
const PROGRAMS = ['/usr', '/bin', '/sbin', '/lib', '/lib64', ROOT].filter(path => existsSync(path))
const NODE = dirname(process.execPath)
if (!NODE.startsWith('/usr/')) PROGRAMS.push(NODE)

class Docker {
  readonly #folder: string
  readonly #options: string[]

  private constructor(folder: string) {
    this.#folder = folder
    this.#options = [
      ...['--rm', '--network=none', '--tmpfs=/tmp'],
      ...PROGRAMS.map(path => `--volume=${path}:${path}:ro`),
      `--env=PATH=/tmp/bin:${NODE}:/usr/sbin:/usr/bin`,
    ]
  }

  static async start(t: Test): Promise<Docker> {
    const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-docker-')))
    makeImage(folder, 'image.tar')
    const there = ['-m', '--propagation', 'slave', 'sh', '-c', DAEMON, 'sh', folder]
    const daemon = spawn('unshare', there, { stdio: 'ignore' })
    const ended = once(daemon, 'close')
    t.teardown(async () => {
      daemon.kill()
      await ended
      rmSync(folder, { recursive: true, force: true })
    })
    const docker = new Docker(folder)
    const died = ended.then(() => {
      throw new Error(readFileSync(join(folder, 'log'), 'utf8'))
    })
    await Promise.race([until(async () => (await docker.#call('version')).status === 0), died])
    await run('docker', '-H', docker.#socket, 'load', '-i', join(folder, 'image.tar'))
    // As on most distributions, whatever this machine has.
    await run('mknod', '-m', '666', join(folder, 'fuse'), 'c', '10', '229')
    return docker
  }

  get #socket(): string {
    return `unix://${this.#folder}/socket`
  }

  #call(...args: string[]): Promise<Outcome> {
    return attempt('docker', '-H', this.#socket, ...args)
  }

  /** Runs a script in a new container. */
  attempt(options: string, script: string): Promise<Outcome> {
    const given = options.replace('/dev/fuse', `${this.#folder}/fuse:/dev/fuse`).split(' ')
    const install = `mkdir /tmp/bin; ln -s ${ROOT}/bin/thinfs.js /tmp/bin/thinfs; cd /tmp`
    const shell = ['bash', '-euo', 'pipefail', '-c', `${install}; ${script}`]
    return this.#call('run', ...this.#options, ...given.filter(Boolean), 'bb:1', ...shell)
  }

  /** What the doctor found there, by what it looked at. */
  async examine(options: string): Promise<{ status: number; get(check: string): Finding }> {
    const { status, stdout, stderr } = await this.attempt(options, 'thinfs doctor --json')
    if (stdout === '') throw new Error(stderr)
    const checks: Finding[] = JSON.parse(stdout).checks
    return { status, get: check => checks.find(found => found.check === check)! }
  }
}

const DEVICE = '--device /dev/fuse'
/** What root of a container needs, and what any of its users does. */
const MAY_MOUNT = `${DEVICE} --cap-add SYS_ADMIN --security-opt apparmor=unconfined`
const MAY_MAKE_NAMESPACES = `${DEVICE} --security-opt seccomp=unconfined --security-opt apparmor=unconfined`
const ORDINARY = '--user 1000:1000'

t.test('a container', async t => {
  const docker = await Docker.start(t)

  await t.test('that lacks something is told what', async t => {
    const bare = await docker.examine('')
    t.equal(bare.status, 1)
    t.match(bare.get('/dev/fuse'), { state: 'fail', found: /--device \/dev\/fuse$/, mend: null })
    for (const user of ['', ORDINARY]) {
      const { status, get } = await docker.examine(`${DEVICE} ${user}`)
      t.equal(status, 1)
      t.match(get('/dev/fuse'), { state: 'ok' })
      t.match(get('mount'), { state: 'fail', found: /--cap-add SYS_ADMIN$/, mend: null })
      t.match(get('user namespace'), { state: 'warn', found: /seccomp=unconfined$/ })
    }
    const refused = await docker.attempt(
      DEVICE,
      'mkdir mnt; thinfs init pool --data-size 16M; thinfs mount pool mnt',
    )
    t.match(refused, { status: 1, stderr: /may not mount; thinfs doctor .*\(MOUNT_FAILED\)\n$/ })
  })

  const wanted = [
    /\nbefore: version one\nnow: version two\n/,
    /\nImages are identical\.\n3\nvirtual size: 256 MiB/,
    /\nthe metadata is the kernel's\n$/,
  ]
  const example = `sh ${ROOT}/examples/rootless.sh`
  await t.test('whose root may mount', async t => {
    const { status: found, get } = await docker.examine(MAY_MOUNT)
    t.equal(found, 0)
    t.match(get('loop devices'), { state: 'warn', mend: /^fuse2fs / })
    const { status, stdout, stderr } = await docker.attempt(MAY_MOUNT, example)
    t.equal(status, 0, stderr)
    for (const line of wanted) t.match(stdout, line)
  })

  await t.test('whose users may make namespaces, and whose root may', async t => {
    for (const user of ['', ORDINARY]) {
      const options = `${MAY_MAKE_NAMESPACES} ${user}`
      t.match((await docker.examine(options)).get('mount'), { state: 'fail', mend: 'unshare -Urm' })
      const { status, stdout, stderr } = await docker.attempt(options, `unshare -Urm ${example}`)
      t.equal(status, 0, stderr)
      for (const line of wanted) t.match(stdout, line)
    }
  })
})
