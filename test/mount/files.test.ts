// Goal: whatever is done to the files of a pool, under its mount or between two mounts, costs no
// byte that was flushed, and is told. Method: files are cut off, put back from older copies,
// exchanged, renamed and shared by two pools, and the host's own tools say what is left of them.
import { execFileSync } from 'node:child_process'
import {
  copyFileSync,
  cpSync,
  mkdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import {
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'

const onMount = needs('/dev/fuse')
const onLoop = needs('/dev/fuse', '/dev/loop-control')
const YAML =
  'data: { size: 64M }\nmetadata: { size: 4M }\non_full: error\nvolumes: { a: { size: 32M } }'

const fill = (name: string, mib: number): string =>
  `dd if=/dev/urandom of=${name} bs=1M count=${mib} conv=notrunc,fsync status=none; sha256sum < ${name}`

async function refusedMount(t: Test, pool: MountedPool, why: RegExp, ...args: string[]) {
  const { status, stderr } = await attemptThinfs('mount', pool.folder, pool.path, ...args)
  t.equal(status, 1, stderr)
  t.match(stderr, why)
  t.notOk(pool.isMounted)
}

/** As one copies a pool: holes stay holes. */
const copy = (source: string, target: string): void => {
  execFileSync('cp', ['--sparse=always', source, target])
}

/** Copies of all files, and what puts them back. */
function keep(pool: MountedPool): () => void {
  const kept = join(pool.base, 'kept')
  rmSync(kept, { recursive: true, force: true })
  mkdirSync(kept)
  const names = ['data', 'metadata', 'volumes.json', 'journal']
  for (const name of names) copy(join(pool.folder, name), join(kept, name))
  return () => {
    for (const name of names) copy(join(kept, name), join(pool.folder, name))
  }
}

const blocks = (pool: MountedPool): number => statSync(pool.data).blocks

t.test('an older copy of the metadata, put back', onMount, async t => {
  for (const [between, why] of [
    ['dd if=/dev/urandom of=a bs=1M count=8 seek=8 conv=notrunc,fsync status=none', /older copy/],
    [
      'truncate -s 1M b; truncate -s 1M c; sync b',
      /volumes\.json: transaction \d+, the metadata is at \d+: the metadata is older/,
    ],
  ] as const) {
    await t.test(between, async t => {
      const pool = await MountedPool.make(t, YAML)
      await pool.sh(fill('a', 4))
      await pool.umount()
      copyFileSync(pool.metadata, join(pool.base, 'old'))
      await pool.mount()
      await pool.sh(between)
      const wanted = await pool.sh('sha256sum *')
      await pool.umount()
      const restore = keep(pool)
      const used = blocks(pool)

      copyFileSync(join(pool.base, 'old'), pool.metadata)
      await refusedMount(t, pool, why)
      t.equal(blocks(pool), used, 'nothing was punched')
      const { stderr } = await attemptThinfs('create', pool.folder, 'x', '--size', '1M')
      t.match(stderr, why, 'every command that writes')
      t.match(await attemptThinfs('list', pool.folder), {
        status: why.source.startsWith('older') ? 0 : 1,
      })
      t.equal(blocks(pool), used)

      restore()
      await pool.mount()
      t.equal(await pool.sh('sha256sum *'), wanted, 'the right one again')
      await pool.close(t)

      copyFileSync(join(pool.base, 'old'), pool.metadata)
      await pool.mount('--accept-metadata')
      t.equal(await pool.sh('ls | head -1'), 'a')
      await pool.umount()
      t.ok(blocks(pool) <= used)
    })
  }
})

t.test('names of another pool, older ones, and none', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  const first = await pool.sh('head -c 4M a | sha256sum')
  copyFileSync(pool.table, join(pool.base, 'older'))
  await pool.sh('truncate -s 2M b; mv b c; sync c')
  await pool.umount()
  const restore = keep(pool)

  const table = JSON.parse(readFileSync(pool.table, 'utf8'))
  writeFileSync(pool.table, JSON.stringify({ ...table, pool: 'other' }))
  await refusedMount(
    t,
    pool,
    /volumes\.json: of the pool "other", pool\.yaml has the pool "test".*--accept-metadata/,
  )
  t.match(await attemptThinfs('check', pool.folder), { status: 1, stdout: /of the pool "other"/ })
  await pool.mount('--accept-metadata')
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await pool.umount()

  restore()
  copyFileSync(join(pool.base, 'older'), pool.table)
  t.match(await attemptThinfs('check', pool.folder), {
    status: 0,
    stdout: /^warning: .*another program went on/m,
  })
  await pool.mount()
  t.equal(await pool.sh('sha256sum < a'), wanted)
  t.ok(pool.log().some(({ level, msg }) => level === 40 && /another program went on/.test(msg)))
  await pool.umount()

  restore()
  rmSync(pool.table)
  t.match(await attemptThinfs('mount', pool.folder, pool.path), {
    status: 0,
    stderr: /volumes\.json: no such file, though the pool has volumes.*rename them/,
  })
  t.equal(await pool.sh('ls'), 'thin-0\nthin-1', 'nothing empty by the name of what there was')
  t.equal(await pool.sh('head -c 4M thin-0 | sha256sum'), first)
  await pool.umount()
})

t.test('older copies of all files but the data, and of the data alone', onMount, async t => {
  for (const end of ['killed', 'unmounted'] as const) {
    const pool = await MountedPool.make(t, YAML)
    const [before, after] = [join(pool.base, 'before'), join(pool.base, 'after')]
    await pool.sh(fill('a', 4))
    // As somebody saves a pool that is in use, not knowing better.
    await run('cp', '-a', pool.folder, before)
    await thinfs('snapshot', pool.folder, 'a', 'b')
    const sum = await pool.sh(fill('a', 8))
    if (end === 'unmounted') await pool.umount()
    else await pool.kill()
    const state = (): string =>
      execFileSync('sha256sum', ['data', 'metadata', 'volumes.json', 'journal'], {
        cwd: pool.folder,
        encoding: 'utf8',
      })
    await run('cp', '-a', pool.folder, after)
    const put = async (from: string, ...names: string[]): Promise<void> => {
      for (const name of names) await run('cp', '-a', join(from, name), join(pool.folder, name))
    }

    await put(before, 'metadata', 'volumes.json', 'journal')
    let found = state()
    await refusedMount(t, pool, /free hold data.*older copy.*--accept-metadata.*POOL_MISMATCH/)
    t.equal(state(), found, 'as it was')
    t.match(await attemptThinfs('check', pool.folder), {
      stdout: /data: as of commit \d+, the journal knows \d+: .* may be older copies/,
    })

    await put(after, 'metadata', 'volumes.json', 'journal')
    await put(before, 'data')
    found = state()
    await refusedMount(t, pool, /data: as of commit \d+, .* an older copy;.*POOL_MISMATCH/)
    t.equal(state(), found, 'as it was')
    t.match(await attemptThinfs('check', pool.folder), { status: 1, stdout: /an older copy/ })

    await put(after, 'data')
    await pool.mount()
    t.equal(await pool.sh('sha256sum < a'), sum)
    await pool.close(t)
  }
})

t.test('the journal of another pool says nothing that costs data', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  await pool.umount()
  const other = join(pool.base, 'other')
  await thinfs('init', other, '--data-size', '64M', '--volume', 'z=1M')
  copyFileSync(join(other, 'journal'), join(pool.folder, 'journal'))
  await pool.mount()
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await pool.close(t)
})

t.test('one of data and metadata is missing', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const sum = await pool.sh(fill('a', 4))
  await pool.umount()
  for (const path of [pool.data, pool.metadata]) {
    renameSync(path, `${path}.away`)
    await refusedMount(t, pool, /no such file, though \/.*\/\w+ is there: put it back.*NOT_A_POOL/)
    const init = await attemptThinfs('init', pool.folder)
    t.equal(init.status, 1, 'nor is it made anew beside the other')
    renameSync(`${path}.away`, path)
  }
  await pool.mount()
  t.equal(await pool.sh('sha256sum < a'), sum)
  await pool.close(t)
})

t.test('a data file that is too short', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 16))
  await pool.umount()
  const restore = keep(pool)
  for (const size of [0, 65536, 4 * 2 ** 20]) {
    await run('truncate', '-s', String(size), pool.data)
    await refusedMount(t, pool, /data: \d+ blocks, the pool has 1024/)
    for (const command of ['list', 'status']) {
      t.match(await attemptThinfs(command, pool.folder), { status: 1, stderr: /the pool has 1024/ })
    }
    t.match(await attemptThinfs('check', pool.folder), {
      status: 1,
      stdout: new RegExp(`^error: .*data: ${size} bytes, wanted the pool's 67108864$`, 'm'),
    })
    t.equal(statSync(pool.data).size, size, 'as long as before')
    restore()
  }
  rmSync(pool.data)
  await refusedMount(t, pool, /data: no such file/)
  restore()
  await pool.mount()
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await pool.close(t)
})

t.test('a file that is cut off under the mount', onMount, async t => {
  for (const name of ['data', 'metadata']) {
    await t.test(name, async t => {
      const pool = await MountedPool.make(t, YAML)
      await pool.sh(fill('a', 16))
      // Blocks of its own may be written in place as long as data is whole; no flush says that it
      // was.
      const flushed = 'head -c 12M a | sha256sum'
      const wanted = await pool.sh(flushed)
      const file = join(pool.folder, name)
      copy(file, join(pool.base, 'whole'))
      const size = name === 'data' ? 4 * 2 ** 20 : 65536
      await run('truncate', '-s', String(size), file)
      await until(async () => (await pool.status()).mode !== 'write')
      const { mode, reason } = await pool.status()
      t.equal(mode, 'read_only')
      t.match(
        reason,
        new RegExp(`${name}: \\d+ blocks, the pool has 1024: the rest of it is missing`),
      )
      t.ok(
        pool.log().some(({ msg, reason }) => msg === 'mode changed' && /missing/.test(`${reason}`)),
      )
      // Neither in place nor into a new block, nor by a flush, nor by unmounting.
      for (const seek of [12, 15, 30]) {
        await pool.failure(`dd if=/dev/urandom of=a bs=1M count=1 seek=${seek} conv=notrunc,fsync`)
      }
      await attemptThinfs('umount', pool.folder)
      await until(() => !pool.isMounted)
      t.equal(statSync(file).size, size, 'nobody made it long again')
      copy(join(pool.base, 'whole'), file)
      await pool.mount()
      t.equal(await pool.sh(flushed), wanted)
      await pool.umount()
    })
  }
})

t.test('metadata that is replaced under the mount', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  const moved = join(pool.base, 'moved')
  renameSync(pool.metadata, moved)
  copy(moved, pool.metadata)
  const second = await attemptThinfs('mount', pool.folder, pool.plain)
  t.match(second, { status: 1, stderr: /is served by process \d+ .*\(POOL_IN_USE\)/ })
  await pool.killEngine()
  t.equal(await pool.sh('sha256sum < a'), wanted, 'the next engine has the same files')
  await pool.sh('truncate -s 1M b; sync b')
  renameSync(moved, pool.metadata)
  await pool.close(t)
})

t.test('metadata that is written over under the mount', onMount, async t => {
  for (const end of ['killed', 'unmounted'] as const) {
    const pool = await MountedPool.make(t, YAML)
    await pool.sh(fill('a', 1))
    const older = join(pool.base, 'older')
    await pool.remount()
    copy(pool.metadata, older)
    const wanted = await pool.sh(fill('a', 4))
    const right = join(pool.base, 'right')
    copy(pool.metadata, right)
    const content = readFileSync(pool.data)
    await run('dd', `if=${older}`, `of=${pool.metadata}`, 'bs=1M', 'conv=notrunc', 'status=none')
    await until(async () => (await pool.status()).mode === 'read_only')
    t.match((await pool.status()).reason, /metadata: another program has written to it/)
    t.equal(await pool.sh('sha256sum < a'), wanted)
    t.match(await pool.failure('echo new > b; sync b'), /Read-only|Input/)
    if (end === 'killed') {
      process.kill(await pool.enginePid(), 'SIGKILL')
      await until(() =>
        pool.log().some(({ msg }) => msg === 'took over' || msg === 'engine failed'),
      )
      await pool.kill()
    } else await attemptThinfs('umount', pool.folder)
    t.ok(readFileSync(pool.data).equals(content), 'nothing is punched')
    await run('dd', `if=${right}`, `of=${pool.metadata}`, 'bs=1M', 'conv=notrunc', 'status=none')
    await pool.mount()
    t.equal(await pool.sh('sha256sum < a'), wanted)
    await pool.close(t)
  }
})

t.test('a file that is removed, or replaced, under the mount', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  const removals: [string, () => void][] = [
    [pool.data, () => rmSync(pool.data)],
    [
      pool.metadata,
      () => {
        copy(pool.metadata, `${pool.metadata}.other`)
        renameSync(`${pool.metadata}.other`, pool.metadata)
      },
    ],
  ]
  for (const [path, remove] of removals) {
    remove()
    await until(() => pool.log().some(({ msg }) => `${msg}`.startsWith(`${path}: was removed`)))
    t.match((await pool.status()).warnings, [new RegExp(`^${path}: was removed, or another file`)])
    const sum = await pool.sh(fill('a', 1))
    t.not(sum, wanted, 'it goes on')
    const refused = await attemptThinfs('umount', pool.folder)
    t.match(refused, { status: 1, stderr: /\(FILE_REMOVED\)\n$/ })
    t.ok(pool.isMounted)

    const program = /save it with (cp .*) ELSEWHERE/.exec(refused.stderr)![1]!
    const saved = join(pool.base, 'saved')
    await pool.sh('sync a')
    await run(...(`${program} ${saved}`.split(' ') as [string, ...string[]]))
    await thinfs('umount', pool.folder, '--force')
    renameSync(saved, path)
    await pool.mount()
    t.equal(await pool.sh('sha256sum < a'), sum)
  }
  await pool.close(t)
})

t.test('two pools with one data file', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  await pool.umount()
  const other = join(pool.base, 'other')
  cpSync(pool.folder, other, { recursive: true })
  const yaml = readFileSync(join(pool.folder, 'pool.yaml'), 'utf8')
  writeFileSync(join(other, 'pool.yaml'), yaml.replace('data: {', `data: { path: ${pool.data},`), {
    mode: 0o600,
  })
  await pool.mount()
  const mount = await attemptThinfs('mount', other, pool.plain)
  t.match(mount, {
    status: 1,
    stderr: new RegExp(
      `${pool.data} is served by process \\d+, which has the pool ${pool.folder}/pool.yaml`,
    ),
  })
  t.match(await attemptThinfs('create', other, 'x', '--size', '1M'), {
    status: 1,
    stderr: /POOL_IN_USE/,
  })
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await pool.close(t)

  rmSync(join(other, 'metadata'))
  await run('ln', pool.data, join(other, 'metadata'))
  t.match(await attemptThinfs('list', other), {
    status: 1,
    stderr: /data \(.*\) and metadata \(.*\) are the same/,
  })
})

t.test('block devices that others have', onLoop, async t => {
  const pool = await MountedPool.prepare(t, YAML, async () => {})
  await sh(pool.base, 'truncate -s 64M image && mkfs.ext4 -q image && mkdir fs')
  const device = await run('losetup', '--find', '--show', join(pool.base, 'image'))
  const file = join(pool.folder, 'pool.yaml')
  writeFileSync(
    file,
    `pool: p\ndata: { path: ${device} }\nmetadata: { path: metadata, size: 4M }\n`,
  )
  const init = (...args: string[]) => attemptThinfs('init', file, ...args)
  const before = await run('sha256sum', join(pool.base, 'image'))

  t.match(await init(), {
    status: 1,
    stderr: new RegExp(`${device}: .*ext4.*--force.*BAD_ARGUMENT`),
  })
  await run('mount', device, join(pool.base, 'fs'))
  for (const args of [[], ['--force']]) {
    t.match(await init(...args), {
      status: 1,
      stderr: new RegExp(`${device}: it is mounted at ${pool.base}/fs \\(POOL_IN_USE\\)`),
    })
  }
  await run('umount', join(pool.base, 'fs'))
  t.not(await run('sha256sum', join(pool.base, 'image')), '', before)
  await run('e2fsck', '-fn', device)

  t.match(await init('--force'), { status: 0 })
  await pool.mount()
  const mounted = await attemptThinfs('mount', pool.folder, pool.plain)
  t.match(mounted, { status: 1, stderr: /POOL_IN_USE/ })
  const { status, stderr } = await attemptThinfs('init', join(pool.base, 'p2'), '--data-size', '1M')
  t.equal(status, 0, stderr)
  const other = join(pool.base, 'p2', 'pool.yaml')
  writeFileSync(other, `pool: o\ndata: { path: ${device} }\nmetadata: { path: m2, size: 4M }\n`)
  t.match(await attemptThinfs('init', other, '--force'), { status: 1, stderr: /POOL_IN_USE/ })
  // The kernel's own users are kept away as well.
  await t.rejects(run('mkfs.ext4', '-q', device))
  await pool.umount()
})

t.test('a loop device over a file of a mounted pool is that file', onLoop, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  const device = await run('losetup', '--find', '--show', pool.data)
  const folder = join(pool.base, 'p3')
  mkdirSync(folder)
  const file = join(folder, 'pool.yaml')
  writeFileSync(file, `pool: o\ndata: { path: ${device} }\nmetadata: { path: m, size: 4M }\n`)
  for (const args of [[], ['--force']]) {
    t.match(await attemptThinfs('init', file, ...args), { status: 1, stderr: /POOL_IN_USE/ })
  }
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await run('losetup', '-d', device)
  await pool.close(t)
})

t.test('a pool on a read-only file system is read, and nothing is written', onMount, async t => {
  const pool = await MountedPool.make(t, YAML)
  const wanted = await pool.sh(fill('a', 4))
  await pool.umount()
  // What a crash leaves, and no journal: opening to write would check, replay, punch.
  rmSync(join(pool.folder, 'journal'))
  rmSync(join(pool.folder, 'thinfs.log'))
  await sh(pool.base, 'mount --bind pool pool && mount -o remount,bind,ro pool')
  const found = () => sh(pool.folder, 'ls -A; stat -c "%n %y %s" *; sha256sum *')
  const before = await found()
  for (const command of [['list'], ['status'], ['check'], ['check', '--deep']]) {
    const { status, stderr } = await attemptThinfs(command[0]!, pool.folder, ...command.slice(1))
    t.equal(status, 0, stderr)
  }
  await pool.mount('-o', 'ro')
  t.equal(await pool.sh('sha256sum < a'), wanted)
  t.match(await attemptThinfs('mount', pool.folder, pool.plain, '-o', 'ro'), {
    status: 1,
    stderr: /is served by .*POOL_IN_USE/,
  })
  t.equal((await pool.status()).mount?.mountPoint, pool.path)
  await pool.killEngine()
  t.equal(await pool.sh('sha256sum < a'), wanted)
  await pool.umount()
  t.equal(await found(), before)
  await run('umount', pool.folder)
  t.equal(await found(), before)
})

t.test('reading what can be written makes no file and changes none', onMount, async t => {
  const pool = await MountedPool.prepare(t, YAML, file => thinfs('init', file))
  rmSync(join(pool.folder, 'journal'))
  const found = () => sh(pool.folder, 'ls -A; stat -c "%n %y %s" *')
  const before = await found()
  for (const command of ['list', 'status', 'check']) await thinfs(command, pool.folder)
  t.equal(await found(), before)
})

t.test(
  'a pool that another program made has its names when it is only read, too',
  onMount,
  async t => {
    const yaml = 'data: { size: 64M }\nvolumes: { named: { id: 0, size: 48M } }'
    const pool = await MountedPool.prepare(t, yaml, file => thinfs('init', file))
    await pool.mount()
    await pool.sh(fill('named', 1))
    await pool.umount()
    rmSync(pool.table)
    await pool.mount('-o', 'ro')
    t.equal(await pool.sh("stat -c '%n %s' *"), `named ${48 * 2 ** 20}`)
    await pool.umount()
  },
)

t.test('init that fails leaves nothing, and takes nothing that was there', onMount, async t => {
  const pool = await MountedPool.prepare(t, YAML, async () => {})
  const file = join(pool.folder, 'pool.yaml')
  const init = async (yaml: string, why: RegExp, ...args: string[]) => {
    writeFileSync(file, `pool: p\n${yaml}\n`)
    const { status, stderr } = await attemptThinfs('init', pool.folder, ...args)
    t.equal(status === 0, false, stderr)
    t.match(stderr, why)
    t.match(stderr, /^thinfs: [^\n]+\n$/)
  }
  const left = () => sh(pool.folder, 'ls -A')
  await init('data: { path: /dev/none, size: 1G }', /\/dev\/none: no such device \(NOT_A_POOL\)/)
  await init('data: { size: 4096T }', /data: no file there can have \d+ bytes \(BAD_ARGUMENT\)/)
  await init('metadata: { size: 4M }', /data: a new file needs a size \(data\.size\)/)
  t.equal(await left(), 'pool.yaml')
  await sh(pool.folder, 'truncate -s 4M metadata && mkfs.ext4 -q metadata')
  const before = await run('sha256sum', pool.metadata)
  await init(
    'data: { size: 64M }',
    /metadata: it is not empty: it has a signature of ext4 at byte 1080; --force/,
  )
  t.equal(await left(), 'metadata\npool.yaml')
  t.equal(await run('sha256sum', pool.metadata), before)
  await run('ln', '-s', 'metadata', pool.data)
  await init('data: { size: 64M }', /are the same/, '--force')
  rmSync(pool.data)
  await thinfs('init', pool.folder, '--force')
  await thinfs('check', pool.folder, '--deep')
})
