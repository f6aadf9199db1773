/** scripts/clear-run: what is left of a run of tests that was interrupted. */
import { existsSync, mkdtempSync, readFileSync, realpathSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { loopsWithin, MountedPool, needs, run, sh } from '../support/mounted-pool.js'

const ROOT = join(import.meta.dirname, '../..')
const CLEAR = join(ROOT, 'scripts/clear-run')

t.test(
  'it takes its own away, and nothing else',
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const folder = realpathSync(mkdtempSync(join(tmpdir(), 'run.')))
    const clear = () => run(CLEAR, folder)
    t.teardown(clear)
    const other = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { a: { size: 1M } }')
    const script = `
    export TMPDIR=$PWD
    thinfs() { ${process.execPath} ${ROOT}/bin/thinfs.js "$@"; }
    mkdir mount fs
    thinfs init pool --data-size 64M --volume a=32M
    thinfs mount pool mount
    device=$(thinfs attach pool a)
    mkfs.ext4 -q $device
    mount $device fs
    echo text > fs/file`
    await sh(folder, script)
    t.equal(loopsWithin(join(folder, 'mount')).length, 1)
    t.equal(await clear(), 'ended 2 processes, unmounted 2 mounts, detached 1 loop devices')
    t.notOk(existsSync(folder))
    t.notMatch(readFileSync('/proc/self/mounts', 'utf8'), folder)
    t.strictSame(loopsWithin(join(folder, 'mount')), [])
    await other.sh('echo text > a')
    await other.close(t)
  },
)
