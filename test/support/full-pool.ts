/** What is done to full pools by tests of several transports. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import type { Test } from 'tap'
import { type MountedPool, python, until } from './mounted-pool.js'

export const usedBlocks = async (pool: MountedPool): Promise<number> =>
  (await pool.status()).data.usedBlocks

/** Takes, with zeros that are written, every data block that a write can have. */
export async function fill(pool: MountedPool): Promise<void> {
  await python(
    pool.base,
    `
import os
# df says how many there are: one more would wait.
free = os.statvfs('mount').f_bavail
file = os.open('mount/fill', os.O_WRONLY)
for i in range(free):
    os.pwrite(file, bytes(65536), i * 65536)
os.fsync(file)
assert os.statvfs('mount').f_bavail == 0`,
  )
}

/** The pool.yaml that `killedWriter` wants. */
export const KILLED_WRITER =
  'data: { size: 16M }\nvolumes: { a: { size: 64M }, fill: { size: 1G } }\non_full: queue'

/**
 * Kills programs that wait for space: nothing of what they wrote is there, and nobody waits with
 * them.
 */
export async function killedWriter(t: Test, pool: MountedPool): Promise<void> {
  await pool.sh('dd if=/dev/urandom of=a bs=1M count=4 conv=notrunc,fsync status=none')
  await fill(pool)
  const used = await usedBlocks(pool)
  const waiting = async (): Promise<number> => (await pool.status()).writesWaiting
  for (const signal of ['SIGKILL', 'SIGINT'] as const) {
    const out = `of=${pool.path}/a`
    const dd = spawn('dd', ['if=/dev/zero', out, 'bs=1M', 'seek=8', 'conv=notrunc'])
    const ended = once(dd, 'exit')
    await until(async () => (await waiting()) === 1)
    dd.kill(signal)
    t.same(await ended, [null, signal])
    const { writesWaiting, onFull } = await pool.status()
    t.same([writesWaiting, onFull], [0, 'queue'], 'before its minute is over')
  }
  t.equal(await usedBlocks(pool), used, 'nothing of it is there')
  await pool.sh('fallocate -p -o 0 -l 1M a; sync a')
  await until(async () => (await usedBlocks(pool)) === used - 16)
  await pool.sh('dd if=/dev/zero of=a bs=64K seek=200 count=1 conv=notrunc,fsync status=none')
}
