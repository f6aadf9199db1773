/**
 * `thinfs extend` and `thinfs set` of pools that are not mounted. thin_check, thin_dump and a copy
 * of the pool.yaml, in which sed has changed the size, judge.
 */
import { mkdtempSync, readFileSync, realpathSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { needs } from '../support/mounted-pool.js'
import { done, refused, run, thinfs } from './command-line.js'

const MIB = 2 ** 20

async function makePool(t: Test, yaml: string): Promise<string> {
  const pool = t.testdir({ 'pool.yaml': yaml })
  await done(t, 'init', join(pool, 'pool.yaml'))
  return pool
}

/** A folder whose teardown undoes something first. */
function folderUntil(t: Test, undo: (folder: string) => Promise<unknown>): string {
  const folder = realpathSync(mkdtempSync(join(tmpdir(), 'thinfs-extend-')))
  t.teardown(async () => {
    await undo(folder)
    rmSync(folder, { recursive: true })
  })
  return folder
}

/** The data blocks that thin_dump finds in the metadata, once thin_check has passed it. */
async function dataBlocks(t: Test, pool: string): Promise<number> {
  const metadata = join(pool, 'metadata')
  t.match(await run('thin_check', metadata), { status: 0 }, 'thin_check')
  const { stdout } = await run('thin_dump', metadata)
  return Number(/nr_data_blocks="(\d+)"/.exec(stdout)![1])
}

const yamlOf = (pool: string): string => readFileSync(join(pool, 'pool.yaml'), 'utf8')

t.test('data and metadata grow, and pool.yaml says so', async t => {
  const yaml = `pool: a # the first
data: { size: 64M } # of 1G
metadata:
  size: 4M

on_full: error`
  const pool = await makePool(t, yaml)
  t.equal(
    await done(t, 'extend', pool, '--data', '+64M', '--metadata', '8M'),
    'data: 128M, it was 64M\nmetadata: 8M, it was 4M\n',
  )
  t.equal(await dataBlocks(t, pool), 2048)
  t.equal(yamlOf(pool), yaml.replace('64M', '128M').replace('4M', '8M'))
  const { mode } = statSync(join(pool, 'pool.yaml'))
  const again = await done(t, 'extend', pool, '--data', '128M', '--metadata', '8M', '--json')
  const sizes = { data: 128 * MIB, metadata: 8 * MIB }
  t.strictSame(JSON.parse(again), { before: sizes, after: sizes })
  t.equal(statSync(join(pool, 'pool.yaml')).mode, mode)

  // A death between the pool and its pool.yaml: to ask again is to end it.
  writeFileSync(join(pool, 'pool.yaml'), yaml)
  t.equal(
    await done(t, 'extend', pool, '--data', '128M'),
    'data: 128M, as it was\nmetadata: 8M, as it was\n',
  )
  t.equal(yamlOf(pool), yaml.replace('64M', '128M').replace('4M', '8M'))
  t.strictSame(JSON.parse(await done(t, 'status', pool, '--json')).warnings, [])
})

t.test('without sizes it is what pool.yaml says', async t => {
  const pool = await makePool(t, 'pool: a\ndata: { size: 1G }\n')
  writeFileSync(join(pool, 'pool.yaml'), 'pool: a\ndata: { size: 16G }\n')
  // 32 bytes for each of 2^18 blocks, four times.
  t.equal(
    await done(t, 'extend', pool),
    'data: 16G, as it was\nmetadata: 32M, it was 16M\n',
    'opening it has extended the data; auto is what so much data needs',
  )
  t.equal(await dataBlocks(t, pool), 2 ** 18)
  t.equal(yamlOf(pool), 'pool: a\ndata: { size: 16G }\n')
  t.equal(statSync(join(pool, 'data')).blocks, 0)
})

t.test('what cannot be is refused in one line, and changes nothing', async t => {
  const yaml = 'pool: a\ndata: { size: 1G }\nmetadata: { size: 2M }\n'
  const pool = await makePool(t, yaml)
  const cases: [status: number, line: RegExp, ...args: string[]][] = [
    [2, /data: 536870912 bytes are less than the 1073741824 that the pool has/, '--data', '512M'],
    [
      1,
      /metadata\.size: 16G is not allowed; auto, or a size from 2M .* \(BAD_CONFIG\)/,
      '--metadata',
      '16G',
    ],
    [2, /: --data -1G is not a size/, '--data', '-1G'],
    [2, /: --metadata \+x is not a size|: --metadata x is not a size/, '--metadata', '+x'],
    [
      1,
      /the map of so much data .* thinfs extend --metadata \+\d+M \(NO_METADATA_SPACE\)/,
      '--data',
      '1T',
    ],
  ]
  for (const [status, line, ...args] of cases)
    await refused(t, status, line, 'extend', pool, ...args)
  t.equal(await dataBlocks(t, pool), 16384)
  t.equal(yamlOf(pool), yaml)
  writeFileSync(join(pool, 'pool.yaml'), 'pool: a\ndata: &d { size: 1G }\nlow_water_mark: 1G\n')
  await done(t, 'extend', pool, '--data', '2G')
  writeFileSync(join(pool, 'pool.yaml'), 'pool: a\nlow_water_mark: &s 2G\ndata: { size: *s }\n')
  await refused(
    t,
    1,
    /data\.size cannot become 3G: it is written in a way/,
    'extend',
    pool,
    '--data',
    '3G',
  )
  t.equal(await dataBlocks(t, pool), 32768)
})

t.test("a host's disk that is too small is told, and takes it", needs(), async t => {
  const host = folderUntil(t, folder => run('umount', '--lazy', folder))
  const pool = join(host, 'pool')
  t.match(await run('mount', '-t', 'tmpfs', '-o', 'size=8M', 'none', host), { status: 0 })
  await done(t, 'init', pool, '--data-size', '4M', '--metadata-size', '2M')
  const { status, stdout, stderr } = await thinfs('extend', pool, '--data', '1G')
  t.match({ status, stdout }, { status: 0, stdout: /^data: 1G, it was 4M$/m })
  t.match(stderr, /^thinfs: .*\/data: the host's disk has [\d.]+M left for it\n$/)
  t.equal(await dataBlocks(t, pool), 16384)
})

t.test('a pool.yaml that may not be written is a refusal', needs(), async t => {
  const pool = folderUntil(t, folder => run('umount', '--lazy', join(folder, 'pool.yaml')))
  const file = join(pool, 'pool.yaml')
  writeFileSync(file, 'pool: a\ndata: { size: 64M }\n')
  await done(t, 'init', file)
  t.match(await run('mount', '--bind', file, file), { status: 0 })
  t.match(await run('mount', '-o', 'remount,bind,ro', file), { status: 0 })
  const line = /pool\.yaml: cannot be written, to have data\.size: 1G: .* \(IO_ERROR\)/
  await refused(t, 1, line, 'extend', pool, '--data', '1G')
  t.equal(await dataBlocks(t, pool), 1024)
})

t.test('a block device: as large as it has become', needs('/dev/loop-control'), async t => {
  let device = ''
  const pool = folderUntil(t, () => run('losetup', '--detach', device))
  const disk = join(pool, 'disk')
  await run('truncate', '-s', '64M', disk)
  device = (await run('losetup', '--find', '--show', disk)).stdout.trim()
  t.match(device, /^\/dev\/loop/)
  const yaml = `pool: a\ndata: { path: ${device} }\n`
  writeFileSync(join(pool, 'pool.yaml'), yaml)
  await done(t, 'init', join(pool, 'pool.yaml'))
  const small = /is a device of 67108864 bytes, 134217728 are wanted/
  await refused(t, 2, small, 'extend', pool, '--data', '128M')
  await run('truncate', '-s', '128M', disk)
  t.match(await run('losetup', '--set-capacity', device), { status: 0 })
  t.match(await done(t, 'extend', pool), /^data: 128M, (as it was|it was 64M)$/m)
  t.equal(await dataBlocks(t, pool), 2048)
  t.equal(yamlOf(pool), yaml)
})

t.test('set: on_full and queue_timeout, in pool.yaml', async t => {
  const pool = await makePool(t, 'pool: a\ndata: { size: 64M }\non_full: queue # for now\n')
  t.equal(await done(t, 'set', pool, 'on_full=error', 'queue_timeout=0'), '')
  t.equal(
    yamlOf(pool),
    'pool: a\ndata: { size: 64M }\non_full: error # for now\nqueue_timeout: 0\n',
  )
  t.match(JSON.parse(await done(t, 'status', pool, '--json')), { onFull: 'error', queueTimeout: 0 })
  t.equal(await done(t, 'set', pool, 'on_full=queue'), '')
  t.match(await done(t, 'status', pool), /^on full +queue, for ever$/m)
  t.equal(await done(t, 'set', pool, 'min_free_space=99%'), '')
  t.match(yamlOf(pool), /^min_free_space: 99%$/m)
  t.match(await done(t, 'status', pool), /^new volumes +while 99% are free$/m)
  await done(t, 'create', pool, 'a', '--size', '1G')
  const before = yamlOf(pool)
  const cases: [status: number, line: RegExp, ...args: string[]][] = [
    [1, /on_full: wait is not allowed; queue, error \(BAD_CONFIG\)/, 'on_full=wait'],
    [1, /queue_timeout: 1m is not allowed; seconds/, 'queue_timeout=1m'],
    [2, /queue_timeout 1000001: seconds from 0, .* to 1000000/, 'a', 'queue_timeout=1000001'],
    [1, /min_free_space: 100% is not allowed; a percentage/, 'min_free_space=100%'],
    [1, /68719476736 bytes more .*, 67108864 are free: .* \(NO_DATA_SPACE\)/, 'a', 'reserve=64G'],
    [2, /1Q is not a size/, 'a', 'limit=1Q'],
    [2, /size=1G: allowed are limit, reserve/, 'a', 'size=1G'],
    [1, /b: no volume has the name/, 'b', 'limit=1G'],
    [2, /spin=0: allowed are on_full, queue_timeout/, 'spin=0'],
    [2, /on_full: allowed are on_full/, 'on_full'],
  ]
  for (const [status, line, ...args] of cases) await refused(t, status, line, 'set', pool, ...args)
  t.equal(yamlOf(pool), before)
})
