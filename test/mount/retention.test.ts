/**
 * Goal: `thinfs prune` and `thinfs trim` of a pool that is mounted and in use. Method: snapshots
 * behind a loop device and in processes; an ext4 that is mounted in another mount namespace alone,
 * whose blocks come back to the host.
 */
import { spawn } from 'node:child_process'
import { mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t from 'tap'
import { trimFilesystem } from '../../src/host/index.js'
import { LET_GO } from '../support/mount-namespace.js'
import {
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const YAML = `data: {size: 256M}
metadata: {size: 4M}
volumes:
  web: {size: 64M}
  web@base: {snapshot_of: web}`

const namesOf = async (pool: MountedPool): Promise<string[]> =>
  JSON.parse(await thinfs('list', pool.folder, '--json')).map(({ name }: { name: string }) => name)

t.test('what is in use stays, and is named', needs('/dev/fuse', '/dev/loop-control'), async t => {
  const pool = await MountedPool.make(t, YAML)
  const { folder } = pool
  const take = (name: string): Promise<string> => thinfs('snapshot', folder, 'web', name)
  for (const name of ['web@1', 'web@2', 'web@3', 'vm']) await take(name)
  const loop = await pool.attach('web@1')
  const dry = await thinfs('prune', folder, 'web', '--keep-last', '1', '--dry-run')
  const lines = (text: string): string[] =>
    text.split('\n').map(line => line.replace(/ {2}.* {2}/, ' '))
  t.strictSame(lines(dry).slice(1), [
    'vm kept: not named web@…',
    'web@3 kept: last',
    'web@2 would be removed',
    'web@1 in use',
    'web@base kept: in pool.yaml',
  ])
  t.equal((await namesOf(pool)).length, 6)
  const pruned = await attemptThinfs('prune', folder, 'web', '--keep-last', '1', '--json', '-y')
  t.match(pruned, { status: 1 })
  t.match(
    pruned.stderr,
    `"code":"VOLUME_BUSY","errno":"EBUSY","message":"web@1: it is open, by ${loop}"`,
  )
  const [, newest] = JSON.parse(pruned.stdout).snapshots
  t.match(newest, { name: 'web@3', kept: ['last'], busy: null })
  t.strictSame(await namesOf(pool), ['vm', 'web', 'web@1', 'web@3', 'web@base'])
  await pool.detach('web@1')
  await until(async () => {
    const { status } = await attemptThinfs('prune', folder, 'web', '--keep-last', '1', '-y')
    return status === 0
  })
  t.strictSame(await namesOf(pool), ['vm', 'web', 'web@3', 'web@base'])
  for (const [args, code] of [
    [['web'], /thinfs remove.*BAD_ARGUMENT/],
    [['web', '--keep-daily', '0'], /from 1.*BAD_ARGUMENT/],
    [['wep', '--keep-daily', '1'], /VOLUME_MISSING/],
  ] as const) {
    t.match((await attemptThinfs('prune', folder, ...args, '-y')).stderr, code)
  }
  await pool.umount()
  t.match(await thinfs('prune', folder, 'web', '--keep-yearly', '1', '--dry-run'), /web@3 .*yearly/)
  await pool.close(t)
})

t.test('what is no folder is not opened', needs('/dev/fuse'), async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-trim-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  await sh(folder, 'mkfifo pipe')
  await t.rejects(trimFilesystem(join(folder, 'pipe')), { code: 'TOOL_FAILED', errno: 'ENOTDIR' })
})

t.test(
  'a filesystem in another namespace is trimmed',
  needs('/dev/fuse', '/dev/loop-control'),
  async t => {
    const pool = await MountedPool.make(t, YAML)
    const { folder, plain } = pool
    const refused = await attemptThinfs('trim', folder, 'web')
    t.match(refused, { status: 1, stderr: /web: no filesystem is mounted .*NOT_MOUNTED/ })
    t.equal(await thinfs('trim', folder), '', 'nothing is mounted, nothing to do')
    const loop = await pool.attach('web')
    await run('mkfs.ext4', '-q', loop)
    // The folder is another one here: what is trimmed must be what is mounted there.
    const there = `${LET_GO} let_go /none; mount ${loop} ${plain} && head -c 20000000 /dev/urandom > ${plain}/file && sync -f ${plain} &&
    rm ${plain}/file && sync -f ${plain} && echo ready && cat`
    const holder = spawn('unshare', ['-m', '--propagation', 'private', 'sh', '-ec', there], {
      stdio: ['pipe', 'pipe', 'inherit'],
    })
    t.teardown(() => void holder.kill('SIGKILL'))
    await new Promise(resolve => holder.stdout.once('data', resolve))
    const blocks = async (): Promise<number> =>
      Number(await pool.sh('sync web; stat -c %b web')) * 512
    t.ok((await blocks()) > 20_000_000)
    t.match(await thinfs('trim', folder), new RegExp(`^web: /proc/\\d+/root${plain}: .* trimmed$`))
    t.ok((await blocks()) < 20_000_000)
    const [{ name, bytes }] = JSON.parse(await thinfs('trim', folder, 'web', '--json'))
    t.equal(name, 'web')
    t.type(bytes, 'number')
    holder.stdin.end()
    await new Promise(resolve => holder.once('close', resolve))
    await until(() => !readFileSync('/proc/self/mounts', 'utf8').includes(loop))
    await sh('/', `e2fsck -fn ${loop}`)
    await pool.detach('web')
    t.match(await attemptThinfs('trim', folder, 'none'), { status: 1, stderr: /VOLUME_MISSING/ })
    await pool.close(t)
  },
)
