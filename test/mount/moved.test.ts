// Goal: whoever moves the folder of a mounted pool, or spoils its pool.yaml, loses nothing and
// stops nobody; and a folder that takes the old name is not touched. Method: the commands that a
// person gives, at the new place, at the old one and at the mount point; a stranger's pool,
// compared byte by byte.
import { mkdirSync, readdirSync, readFileSync, renameSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import { attemptThinfs, MountedPool, needs, run, thinfs, until } from '../support/mounted-pool.js'

const YAML = 'data: { path: data, size: 64M }\nmetadata: { path: metadata, size: 4M }'
const onMount = needs('/dev/fuse')

/** The files of a folder, by name. */
const contentOf = (folder: string): Record<string, string> =>
  Object.fromEntries(
    readdirSync(folder).map(name => [name, readFileSync(join(folder, name), 'latin1')]),
  )

t.test('the folder is moved', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await thinfs('create', pool.folder, 'a', '--size', '16M')
  await pool.sh('dd if=/dev/zero bs=1M count=1 conv=notrunc,fsync of=a status=none')
  const moved = join(pool.base, 'moved')
  renameSync(pool.folder, moved)

  t.match(await attemptThinfs('list', pool.folder), {
    status: 1,
    stderr: new RegExp(`pool: no such file.*mounted at ${pool.path} \\(NOT_A_POOL\\)\n$`),
  })
  t.match(await thinfs('list', pool.path), /^a /m)
  await thinfs('init', pool.folder, '--data-size', '64M', '--volume', 'stranger=1M')
  const stranger = contentOf(pool.folder)

  await thinfs('create', moved, 'b', '--size', '16M')
  await thinfs('snapshot', pool.path, 'a', 'c')
  await pool.sh('touch d; mv d e; printf text > a; sync a; rm c')
  process.kill(await enginePid(moved), 'SIGKILL')
  t.equal(await pool.sh('head -c 4 a; ls'), 'texta\nb\ne')
  await thinfs('restart', pool.path)
  process.kill((await mountOf(moved)).pid, 'SIGHUP')
  await pool.sh('truncate -s 2M e')
  t.same(contentOf(pool.folder), stranger, 'nobody touched it')
  t.match(await thinfs('list', pool.folder), /^stranger /m, 'its own commands reach it')

  process.kill((await mountOf(moved)).pid, 'SIGKILL')
  await until(async () => (await mountOf(pool.path))?.pid === null)
  await pool.sh('touch f')
  await thinfs('mount', moved, pool.path)
  t.equal(await pool.sh('head -c 4 a; ls'), 'texta\nb\ne\nf')
  t.equal((await mountOf(pool.path)).source, join(pool.folder, 'pool.yaml'))

  await thinfs('umount', pool.path)
  t.same(contentOf(pool.folder), stranger, 'nobody touched it')
  t.match(await attemptThinfs('check', '--deep', moved), { status: 0, stderr: '' })
  t.match(await thinfs('list', moved), /^a .*\nb .*\ne .*\nf /m)
})

t.test('the folder is removed, and another pool takes its place', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.sh('printf text > a; sync a')
  rmSync(pool.folder, { recursive: true })
  await thinfs('init', pool.folder, '--data-size', '64M', '--volume', 'stranger=1M')
  const stranger = contentOf(pool.folder)
  for (const args of [['list'], ['status'], ['create', 'b', '--size', '1M'], ['umount']]) {
    const [command, ...rest] = args as [string, ...string[]]
    const { status, stderr } = await attemptThinfs(command, pool.path, ...rest)
    t.equal(status, 1, command)
    t.match(
      stderr,
      `the pool.yaml of the pool that is mounted there, once ${pool.folder}/pool.yaml, was`,
    )
  }
  t.equal(await pool.sh('cat a'), 'text')
  await run('umount', pool.path)
  await until(() => pool.processes().length === 0)
  t.same(contentOf(pool.folder), stranger, 'nobody touched it')
})

t.test('the folder is removed: its files can be saved, as the message says', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  await pool.sh('printf text > a; sync a')
  const yaml = readFileSync(join(pool.folder, 'pool.yaml'))
  rmSync(pool.folder, { recursive: true })
  const { status, stderr } = await attemptThinfs('umount', pool.path)
  t.equal(status, 1)
  t.match(stderr, /once nobody writes, before umount .* loses them.* \(FILE_REMOVED\)\n$/)
  const copies = [...stderr.matchAll(/cp --sparse=always (\S+) ELSEWHERE\/(\w+)/g)]
  t.same(copies.map(([, , name]) => name).sort(), ['data', 'metadata'])
  mkdirSync(pool.folder)
  for (const [, from, name] of copies)
    await run('cp', '--sparse=always', from!, join(pool.folder, name!))
  await run('umount', pool.path)
  await until(() => pool.processes().length === 0)
  writeFileSync(join(pool.folder, 'pool.yaml'), yaml)
  await thinfs('mount', pool.folder, pool.path)
  t.equal(await pool.sh('head -c 4 thin-0'), 'text')
})

t.test('pool.yaml is spoilt', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const file = join(pool.folder, 'pool.yaml')
  const text = readFileSync(file, 'utf8')
  await pool.sh('printf text > a; sync a')
  const spoilt = [
    `${text}nonsense`,
    text.replace('test', 'other'),
    `${text}data_block_size: 128K\n`,
  ]
  for (const content of spoilt) {
    const pid = (await pool.processes()).at(-1)!
    writeFileSync(file, content)
    process.kill(pid, 'SIGKILL')
    t.equal(await pool.sh('printf text >> a; sync a; tail -c 4 a'), 'text')
    writeFileSync(file, text)
    t.equal((await pool.status()).mode, 'write')
  }
  await pool.close(t)
})

const mountOf = async (pool: string) => JSON.parse(await thinfs('status', pool, '--json')).mount
const enginePid = async (pool: string): Promise<number> => (await mountOf(pool)).enginePid
