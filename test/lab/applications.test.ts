// Goal: what claims to survive a power cut does, on a volume that flushes, and is found out on one
// that ignores them: ext4, SQLite and LMDB. Method: all three work on a loop device that is
// recorded; each state that a power cut could have left is judged by e2fsck, SQLite and mdb_stat,
// and may not lack what the last mark says was committed.
import { mkdirSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { connectDaemon } from '../../src/control/index.js'
import { attemptThinfs, MountedPool, needs, run, sh, thinfs } from '../support/mounted-pool.js'

const COMMITS = 3

/** Prints what is damaged in the ext4 of an image: fs, sqlite or lmdb. */
const JUDGE = `
image=$1 at=$(mktemp -d)
trap 'rm -r $at' EXIT
read -r _ rows _ keys <<< "\${THINFS_MARK:-sqlite 0 lmdb 0}"
damaged=()
e2fsck -p "$image" > $at/log 2>&1
(($? <= 1)) && e2fsck -fn "$image" >> $at/log 2>&1 || damaged+=(fs)
mkdir $at/lmdb
for file in db db-journal lmdb/data.mdb; do
  debugfs -R "dump /$file $at/$file" "$image" > $at/log 2>&1
done
{ read -r verdict && read -r found; } < <(sqlite3 $at/db 'PRAGMA integrity_check; SELECT count(*) FROM t' 2>&1)
[[ $verdict == ok ]] && ((found >= rows)) || damaged+=(sqlite)
found=$(mdb_stat $at/lmdb 2>/dev/null | sed -n 's/^  Entries: //p')
((\${found:-0} >= keys)) || damaged+=(lmdb)
echo "\${damaged[*]}"
((\${#damaged[@]} == 0))
`

/**
 * Records the three at work on a new ext4, then replays it.
 * @returns what each state's judge said
 */
async function judged(t: Test, ignoreFlushes: boolean): Promise<string[]> {
  const pool = await MountedPool.make(t, 'data: { size: 256M }\nvolumes: { disk: { size: 32M } }')
  const fs = join(pool.base, 'fs')
  const judge = join(pool.base, 'judge')
  writeFileSync(judge, JUDGE)
  mkdirSync(fs)
  const device = await pool.attach('disk')
  await sh(
    '/',
    `mkfs.ext4 -q ${device}
    mount ${device} ${fs}
    sqlite3 ${fs}/db 'CREATE TABLE t (i INTEGER PRIMARY KEY, filler)'
    mkdir ${fs}/lmdb
    mdb_load -T ${fs}/lmdb < /dev/null
    umount ${fs}`,
  )
  const daemon = (await connectDaemon({
    file: join(pool.folder, 'pool.yaml'),
    folder: pool.folder,
  }))!
  await daemon.record({ name: 'disk' })
  if (ignoreFlushes) await daemon.inject({ name: 'disk', ignoreFlushes })
  await run('mount', device, fs)
  for (let i = 1; i <= COMMITS; i++) {
    const insert = `PRAGMA synchronous = EXTRA; INSERT INTO t VALUES (${i}, randomblob(20000))`
    await sh(fs, `head -c ${i * 9000} /dev/urandom > file-${i}; sqlite3 db '${insert}'`)
    await daemon.mark({ name: 'disk', mark: `sqlite ${i} lmdb ${i - 1}` })
    await sh(fs, `rm -f file-${i - 1}; printf 'key-${i}\\nvalue\\n' | mdb_load -T lmdb`)
    await daemon.mark({ name: 'disk', mark: `sqlite ${i} lmdb ${i}` })
  }
  await run('umount', fs)
  await daemon.stopRecording({ name: 'disk' })
  daemon.close()
  await pool.detach('disk')
  const replay = ['replay', pool.folder, 'disk', '--each-flush', '--drop-unflushed', '1', '--json']
  const { stdout, stderr } = await attemptThinfs(...replay, '--', 'bash', judge, '{}')
  t.match(stderr, ignoreFlushes ? /"TOOL_FAILED"/ : /^$/)
  const { states, failed } = JSON.parse(stdout)
  t.ok(states > 4 * COMMITS, `${states} states`)
  await thinfs('record', pool.folder, 'disk', '--remove', '--yes')
  await pool.close(t)
  return failed.map(({ output }: { output: string }) => output.trim())
}

const onLoop = needs('/dev/fuse', '/dev/loop-control')

t.test(
  'with barriers ext4, SQLite and LMDB keep what they say, after any power cut',
  onLoop,
  async t => {
    t.same(await judged(t, false), [])
  },
)

t.test('whose flushes are ignored is found damaged, each of the three', onLoop, async t => {
  const damaged = (await judged(t, true)).join(' ').split(' ')
  for (const what of ['fs', 'sqlite', 'lmdb']) t.ok(damaged.includes(what), `${what}: ${damaged}`)
})
