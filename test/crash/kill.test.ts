// Goal: an engine that is killed or stopped, at any moment, is an error to nobody, and no byte is
// lost or done twice. Method: on the real mount, programs that know what they have written run
// while engines die at seeded moments; then the checkers of others judge what is left, and the data
// is compared with that of ordinary files. How long anybody had to wait is printed.
import { mkdirSync, readFileSync } from 'node:fs'
import { join } from 'node:path'
import { setTimeout as delay } from 'node:timers/promises'
import t, { type Test } from 'tap'
import type { VolumeInfo } from '../../src/volumes/index.js'
import type { VolumeEntry } from '../../src/volumes/volume-table.js'
import {
  killEngines,
  killServingEngines,
  starveEngines,
  stopEngines,
  takeovers,
} from '../support/engine-killer.js'
import { fio, type Load, load, repeat, runLoad, STOP, type Tree } from '../support/load.js'
import { MemoryCgroup } from '../support/memory-cgroup.js'
import { MountedPool, needs, run, sh, thinfs, until } from '../support/mounted-pool.js'
import { EFFORT, figure, tally } from '../support/tally.js'

const SEED = 20_260_101
/** Kills of each test. */
const KILLS = EFFORT === 1 ? 3 : 10 * EFFORT

const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')

type Steps = { steps: number }
type Probe = Load<{ requests: number; longestMs: number }>

/** A pool, and a volume of it that is used all the time, to see how long that takes. */
async function makePool(t: Test, volumes: string): Promise<{ pool: MountedPool; probe: Probe }> {
  const yaml = `data: { size: 2G }\nvolumes: { ${volumes}, probe: { size: 1M } }`
  const pool = await MountedPool.make(t, yaml)
  t.comment(`seed ${SEED}`)
  return { pool, probe: await load(pool, 'probe', join(pool.path, 'probe'), STOP) }
}

/** Ends the probe and prints what it saw. */
async function pauses(t: Test, pool: MountedPool, probe: Probe): Promise<void> {
  const { requests, longestMs } = await probe.stop()
  const ms = takeovers(pool).sort((a, b) => a - b)
  const [median, most] = [ms[ms.length >> 1], ms.at(-1)]
  figure(t, `longest pause ${longestMs} ms in ${requests} requests of the probe`)
  if (ms.length > 0) figure(t, `${ms.length} takeovers in ${median} ms (median), ${most} ms (most)`)
}

t.test('files of the mount, written to, renamed and removed', onMount, async t => {
  const { pool, probe } = await makePool(t, 'a: { size: 32M }, b: { size: 24M }')
  const verified = fio(pool, join(pool.path, 'a'), '--size=32M --bsrange=4k-256k --iodepth=16')
  const twinFiles = [pool.path, pool.plain].map(folder => join(folder, 'b'))
  const twin = await load<Steps & { bytes: number }>(pool, 'twin', ...twinFiles, SEED, STOP)
  const names = await load<Steps>(pool, 'names', pool.path, 'n', SEED, STOP)
  await killEngines(pool, KILLS, SEED)

  const group = new MemoryCgroup(t, 'oom', 64 * 2 ** 20)
  await starveEngines(pool, group, EFFORT)
  t.ok(group.nrKilled >= EFFORT, `for want of memory the kernel has killed ${group.nrKilled}`)

  const deaths = takeovers(pool).length
  await stopEngines(pool, EFFORT, SEED)
  t.equal(takeovers(pool).length, deaths, 'nobody takes an engine that is stopped for dead')

  const bytes = (await verified.stop()) + (await twin.stop()).bytes
  t.comment(`${(await names.stop()).steps} changes of names`)
  await pauses(t, pool, probe)
  // A volume that was removed while open keeps its space until it is closed: no close is forgotten.
  await until(() => removedVolumes(pool).length === 0)
  t.same(await openVolumes(pool), [], 'nor is any counted twice')

  await sh(pool.plain, 'cp ../mount/a a')
  await pool.remount()
  t.equal(await pool.sh('cmp a ../plain/a; cmp b ../plain/b'), '', 'as before it was unmounted')
  await pool.close(t)
  tally(t, { 'kills survived': KILLS + EFFORT, 'bytes verified': bytes })
})

t.test('ext4 and xfs on loop devices', onLoop, async t => {
  const { pool, probe } = await makePool(t, 'ext4: { size: 512M }, xfs: { size: 512M }')
  const kernelLog = (): Promise<string> => sh(pool.base, 'dmesg')
  const before = await kernelLog()
  const systems = await Promise.all(['ext4', 'xfs'].map(kind => makeFileSystem(pool, kind)))
  await killEngines(pool, KILLS, SEED + 1)
  let bytes = 0
  for (const { stop } of systems) bytes += (await stop(t)).bytes
  await pauses(t, pool, probe)

  const names = systems.map(({ device }) => device.slice('/dev/'.length))
  const lines = (await kernelLog()).slice(before.length).split('\n')
  const ours = lines.filter(line => names.some(name => line.includes(name)))
  t.same(
    ours.filter(line => /error|corrupt/i.test(line)),
    [],
    'nor does the kernel know of any',
  )
  await pool.close(t)
  tally(t, { 'kills survived': KILLS, 'bytes verified': bytes })
})

t.test('killed every 1.7 s, each after it has served', onLoop, async t => {
  const { pool, probe } = await makePool(t, 'a: { size: 64M }, ext4: { size: 512M }')
  const verified = fio(pool, join(pool.path, 'a'), '--size=64M --bs=4k --iodepth=16')
  const system = await makeFileSystem(pool, 'ext4')
  const kills = EFFORT === 1 ? 4 : 7 * EFFORT
  await killServingEngines(pool, kills, () => delay(1700))
  const bytes = (await verified.stop()) + (await system.stop(t)).bytes
  await pauses(t, pool, probe)
  await pool.close(t)
  tally(t, { 'kills survived': kills, 'bytes verified': bytes })
})

/** Names of the volumes that were removed and whose space is not back yet. */
function removedVolumes(pool: MountedPool): string[] {
  const { volumes } = JSON.parse(readFileSync(pool.table, 'utf8')) as { volumes: VolumeEntry[] }
  return volumes.filter(({ removed }) => removed).map(({ name }) => name)
}

/** Names of the volumes that are taken to be open. */
async function openVolumes(pool: MountedPool): Promise<string[]> {
  const volumes: VolumeInfo[] = JSON.parse(await thinfs('list', pool.folder, '--json'))
  return volumes.filter(({ open }) => open).map(({ name }) => name)
}

/**
 * A filesystem on a loop device on the volume of its name, with files that are changed and trimmed.
 */
async function makeFileSystem(pool: MountedPool, kind: string) {
  const at = join(pool.base, kind)
  const [tree, state] = [join(at, 'tree'), join(pool.base, `${kind}-state`)]
  mkdirSync(at)
  const device = await pool.attach(kind)
  await run(`mkfs.${kind}`, '-q', device)
  await run('mount', device, at)
  const writers = await load<Tree>(pool, 'tree', 'run', tree, SEED, 3, STOP, state)
  const trims = repeat(pool, at, 'fstrim .; sleep 0.2')
  return {
    device,
    /** Makes the checkers of others judge it. @returns how much was verified, before and after */
    async stop(t: Test): Promise<{ bytes: number }> {
      const nrTrims = await trims.stop()
      const { steps, bytes, longestFlushMs } = await writers.stop()
      t.comment(`${kind}: ${steps} steps, ${nrTrims} fstrim, longest fsync ${longestFlushMs} ms`)
      await run('umount', at)
      const check = kind === 'xfs' ? 'xfs_repair -n' : 'e2fsck -fn'
      t.ok(await sh(pool.base, `${check} ${device} 2>&1`), check)
      await run('mount', device, at)
      const verified = await runLoad<Tree>('tree', 'verify', tree, state)
      await run('umount', at)
      await pool.detach(kind)
      return { bytes: bytes + verified.bytes }
    },
  }
}
