// Goal: whatever people do to a pool, nothing that was flushed is lost, nothing hangs, and what is
// refused is refused in one clear line with all left as it was. Method: two operators at once do,
// on a real mount, what their seeds decide: commands, files, mistakes, full disks, kills. A model
// knows what has to be there; at quiet points all of it is compared, and the checkers have nothing
// to say.
import { randomInt } from 'node:crypto'
import { readFileSync, writeFileSync } from 'node:fs'
import { dirname } from 'node:path'
import t from 'tap'
import { MountedPool, needs, run, thinfs } from '../support/mounted-pool.js'
import { type OperatorError, operate } from '../support/operator/runner.js'
import { EFFORT, tally } from '../support/tally.js'

const SEED = 20_260_301
/** Actions of each operator. */
const STEPS = 12 * EFFORT
/** THINFS_SEED repeats a schedule, as far as races allow. `npm test` knows what it tries. */
const SEEDS = process.env.THINFS_SEED
  ? [Number(process.env.THINFS_SEED)]
  : [SEED, ...(EFFORT > 1 ? [randomInt(1e9)] : [])]
/** Milliseconds, also where many others use the machine. */
const LIMIT = 200_000 * (1 + EFFORT)

t.setTimeout(LIMIT)

for (const seed of SEEDS) {
  t.test(
    `two operators, seed ${seed}`,
    { ...needs('/dev/fuse', '/dev/loop-control'), timeout: LIMIT },
    async t => {
      const yaml = 'data: { size: 64M }\non_full: error'
      const pool = await MountedPool.make(t, yaml, async file => {
        const text = readFileSync(file)
        await run('mount', '-t', 'tmpfs', '-o', 'size=160M,mode=755', 'tmpfs', dirname(file))
        writeFileSync(file, text)
        await thinfs('init', file)
      })
      const counts = await operate(pool, seed, STEPS).catch((err: OperatorError) => {
        t.fail(err.message, { story: err.story, cause: err.cause })
        throw err
      })
      t.comment(JSON.stringify(counts))
      t.ok(counts.actions >= 2 * STEPS, 'all was done, and all is there')
      await pool.close(t)
      tally(t, { 'kills survived': counts.kills, 'bytes verified': counts.bytes })
    },
  )
}
