// Goal: what a mounted pool promises whoever runs it: space that comes back, writers that wait or
// are told, a mount that ends and begins in order. Method: the host's own tools look at the pool's
// files, programs that are known to wait or to fail are watched from outside.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, readFileSync, statSync, truncateSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attempt,
  attemptThinfs,
  dataRanges,
  failure,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
  until,
} from '../support/mounted-pool.js'
import { thinDump } from '../support/thin-tools.js'

const MIB = 1024 * 1024
const onMount = needs('/dev/fuse')

/** Bytes that the host's filesystem has given to a file. */
const hosted = (path: string): number => statSync(path).blocks * 512
const refused = async (wanted: RegExp | string, ...args: string[]) => {
  const { status, stdout, stderr } = await attemptThinfs(...args)
  t.match({ status, stdout }, { status: 1, stdout: '' }, args.join(' '))
  t.match(stderr, wanted)
}

t.test('free means hole: what is given up leaves the host too', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 128M }\nvolumes: { a: { size: 64M }, b: { size: 64M } }',
  )
  await pool.sh('head -c 32M /dev/urandom > ../random')
  await pool.sh('for v in a b; do dd if=../random of=$v bs=1M conv=notrunc,fsync status=none; done')
  await thinfs('snapshot', pool.folder, 'a', 'snap')
  // The host's filesystem counts its own blocks for the map of a fragmented file, too.
  const extraOf = (blocks: number): number => hosted(pool.data) - blocks * 65536
  const hosts = async (blocks: number, what: string): Promise<void> => {
    // Freed blocks are punched behind the commit, and no flush waits for that.
    await until(() => extraOf(blocks) < 65536)
    const extra = extraOf(blocks)
    t.ok(
      extra >= 0 && extra < 65536,
      `${what}: ${blocks} blocks and ${extra} bytes of the host's own`,
    )
  }
  await hosts(1024, 'all written')
  /** Blocks mapped once the step is committed, as data blocks, then as bytes of the host. */
  const leaves = async (blocks: number, script: string): Promise<void> => {
    await pool.sh(`${script}\nsync $(ls | head -n 1)`)
    t.equal((await pool.status()).data.usedBlocks, blocks, script)
    await hosts(blocks, script)
  }
  await leaves(1024, 'fallocate -p -o 0 -l 8M a')
  await leaves(1024 - 160, 'fallocate -p -o 1M -l 10M b')
  await leaves(1024 - 160 - 16, 'truncate -s 31M b')
  const write = 'dd if=../random of=snap bs=1M seek=10 count=3 conv=notrunc status=none'
  await leaves(1024 - 160 - 16 + 48, write)
  // The space of a removed volume follows its name in slices, and only what nobody shares.
  const remove = async (name: string, blocks: number): Promise<void> => {
    await pool.sh(`rm ${name}`)
    await until(async () => (await pool.status()).data.usedBlocks === blocks)
    await leaves(blocks, ':')
  }
  await remove('a', 1024 - 160 - 16)
  await remove('snap', 512 - 160 - 16)
  await pool.sh('dd if=../random of=b bs=64K count=8 seek=20 conv=notrunc status=none')
  await pool.close(t)

  // The other way round: every mapped block has data, at the place that thin_dump says.
  const { devices } = thinDump(pool.metadata)
  const mapped = [...devices.values()].flatMap(({ mappings }) => [...mappings.values()])
  const found = new Set<number>()
  for (const [begin, end] of await dataRanges(pool.data)) {
    for (let at = begin; at < end; at += 65536) found.add(at / 65536)
  }
  t.same(found, new Set(mapped.map(({ dataBlock }) => dataBlock).sort((a, b) => a - b)))

  // A crash may leave data in a free block; nobody shall ever read it.
  await run(
    'dd',
    'if=/dev/urandom',
    `of=${pool.data}`,
    'bs=1M',
    'conv=notrunc',
    'seek=100',
    'count=9',
  )
  t.not((await pool.strayData()).length, 0)
  await run('rm', '-f', join(pool.folder, 'journal'))
  await pool.mount('--accept-metadata')
  await hosts(found.size, 'the next mount makes it a hole')
  await pool.sh('truncate -s 90M new; fallocate -l 90M new; cmp -n 94371840 new /dev/zero')
  await pool.close(t)
})

t.test('a full pool that answers with errors', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 16M }\nvolumes: { a: { size: 12M }, b: { size: 12M } }\non_full: error',
  )
  await sh(pool.plain, 'head -c 12M /dev/urandom | tee a > b; head -c 1M /dev/urandom > ../copy')
  await pool.sh('dd if=../plain/a of=a bs=1M oflag=direct conv=notrunc status=none')
  for (const flags of ['conv=notrunc', 'oflag=direct conv=notrunc', 'oflag=dsync conv=notrunc']) {
    const full = await pool.failure(`dd if=../plain/b of=b bs=1M ${flags}`)
    t.match(full, /No space left on device/, flags)
    t.match(full, /^4\+0 records out/m, 'nothing of a write that does not fit')
  }
  t.match(await pool.status(), { mode: 'out_of_data_space', data: { usedBlocks: 256 } })
  await pool.sh('cmp a ../plain/a; cmp -n 4194304 b ../plain/b')
  for (const folder of [pool.path, pool.plain]) {
    await sh(folder, 'dd if=../copy of=a bs=100K seek=5 count=9 conv=notrunc status=none')
  }
  t.match(await pool.failure('cp ../copy c'), /No space left on device/)
  await refused(/./, 'remove', '--yes', pool.folder, 'none')
  await pool.sh('rm c; fallocate -p -o 0 -l 1M b; sync b')
  t.equal((await pool.status()).mode, 'write')
  await pool.sh('dd if=../plain/b of=b bs=1M count=1 conv=notrunc status=none')
  await pool.sh('cmp a ../plain/a; cmp -n 4194304 b ../plain/b')
  await pool.close(t)
})

t.test('a full pool whose writers wait', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    `data: { size: 16M }
volumes: { a: { size: 8M }, b: { size: 8M }, c: { size: 8M } }
on_full: queue`,
  )
  await sh(pool.plain, 'head -c 8M /dev/urandom > a; head -c 8M /dev/urandom > c')
  await pool.sh('for v in a b; do dd if=../plain/a of=$v bs=1M conv=notrunc status=none; done')
  let ended = false
  const writer = pool
    .sh('dd if=../plain/c of=c bs=1M oflag=direct conv=notrunc,fsync status=none')
    .finally(() => {
      ended = true
    })
  await until(async () => (await pool.status()).mode === 'out_of_data_space')

  // Others go on meanwhile: reads, writes to mapped blocks, discards, names.
  await pool.sh('cmp a ../plain/a')
  await Promise.all([
    pool.sh('dd if=../plain/c of=a bs=64K seek=32 count=8 oflag=direct conv=notrunc status=none'),
    sh(pool.plain, 'dd if=c of=a bs=64K seek=32 count=8 conv=notrunc status=none'),
  ])
  await pool.sh('mv b d; stat d > ../stat; cmp a ../plain/a')
  t.match(await thinfs('list', pool.folder), /^d /m)
  t.equal(ended, false, 'the writer still waits')
  await thinfs('remove', pool.folder, 'd', '--yes')
  t.equal(await writer, '')
  t.equal(await pool.sh('cmp c ../plain/c; cmp a ../plain/a; ls'), 'a\nc')
  t.equal((await pool.status()).mode, 'write')
  t.match(
    pool
      .log()
      .filter(({ msg }) => msg === 'mode changed')
      .map(({ mode }) => mode),
    ['out_of_data_space', 'write'],
  )
  const told = pool.log().filter(({ msg }) => /low water/.test(msg))
  t.equal(told.length, 2, 'crossed again after the removal')
  await pool.close(t)
})

t.test('one mount at a time, and none that is in use is taken away', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { a: { size: 8M } }')
  const other = join(pool.base, 'other')
  mkdirSync(other)
  t.equal(await run('ls', pool.path), 'a', 'mount returns when it is served')
  const pid = (await pool.status()).mount!.pid!
  const served = `served by process ${pid} at ${pool.path}`
  await refused(served, 'mount', pool.folder, other)
  await refused(served, 'mount', pool.folder, pool.path)

  const script = `exec 3< ${pool.path}/a; echo; read -r _`
  const holder = spawn('sh', ['-c', script], { stdio: ['pipe', 'pipe', 'inherit'] })
  await once(holder.stdout, 'data')
  await refused(`held by process ${holder.pid} (sh)`, 'umount', pool.folder)
  process.kill(pid, 'SIGTERM')
  await until(() => pool.log().some(({ msg }) => msg === 'still mounted'))
  t.equal(await pool.sh('echo still there > b; cat b'), 'still there')
  t.equal(pool.isMounted, true)
  holder.stdin.end()
  await once(holder, 'close')

  const ended = (): boolean => pool.log().at(-1)!.msg === 'unmounted'
  process.kill(pid, 'SIGTERM')
  await until(ended)
  t.equal(pool.isMounted, false)
  await pool.mount()
  t.equal(await pool.sh('head -c 4M /dev/urandom | tee ../plain/a > a; cat b'), 'still there')
  await run('umount', pool.path)
  await until(ended)
  await pool.mount()
  await pool.sh('cmp a ../plain/a')
  t.match(await failure('/', `mkdir ${pool.path}/x`), /Operation not permitted/)
  await pool.close(t)
})

t.test('a dead mount is replaced; what was acknowledged is there', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }\nvolumes: { a: { size: 32M } }')
  const dies = async (): Promise<void> => {
    const { pid, enginePid } = (await pool.status()).mount!
    process.kill(pid!, 'SIGKILL')
    process.kill(enginePid, 'SIGKILL')
    await until(async () => /not connected|aborted/.test(await failure('/', `stat ${pool.path}/a`)))
  }
  await sh(pool.plain, 'head -c 16M /dev/urandom > a')
  await pool.sh('dd if=../plain/a of=a bs=300K conv=notrunc,fsync status=none')
  for (const flags of ['oflag=direct', '']) {
    // Never flushed: the page cache has the data, the journal the mappings.
    await sh(pool.plain, 'head -c 3M /dev/urandom > new')
    const dd = 'dd if=../plain/new of=a bs=300K seek=7 conv=notrunc status=none'
    await Promise.all([pool.sh(`${dd} ${flags}`), sh(pool.plain, dd)])
    await pool.sh('fallocate -p -o 9M -l 1M a; truncate -s 40M b')
    await sh(pool.plain, 'fallocate -p -o 9M -l 1M a')
    await dies()
    t.match(await failure('/', `ls ${pool.path}`), /Transport endpoint is not connected|aborted/)
    await pool.mount()
    t.equal(await pool.sh('cmp -n 16777216 a ../plain/a; stat -c %s a b'), '33554432\n41943040')
  }
  await dies()
  t.match(await attemptThinfs('umount', pool.path), {
    status: 0,
    stderr: `thinfs: nobody served ${pool.path} any more\n`,
  })
  t.notOk(pool.isMounted)
  t.match(await attemptThinfs('umount', pool.folder), { status: 1, stderr: / \(NOT_MOUNTED\)\n$/ })
  await pool.mount()
  await pool.close(t)
})

t.test('a mount that fails while it cannot be unmounted leaves no process', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 64M }')
  await pool.umount()
  const node = process.execPath
  const mount = ['bin/thinfs.js', 'mount', pool.folder, pool.path]
  for (const limit of [24, 28]) {
    const { status } = await attempt('prlimit', `--nofile=${limit}`, node, ...mount)
    t.equal(pool.isMounted, status === 0, `${limit} descriptors: status ${status}`)
    if (pool.isMounted) await pool.kill()
  }

  // The engine refuses it, and the program umount is not there.
  truncateSync(pool.data, 32 * MIB)
  const { status, stderr } = await attempt('env', 'PATH=/nowhere', node, ...mount)
  t.equal(status, 1, stderr)
  t.match(stderr, / \(POOL_MISMATCH\)\n$/)
  t.same(pool.processes(), [])
  truncateSync(pool.data, 64 * MIB)
  await pool.mount()
  await pool.close(t)
})

t.test('the log has one line for each thing that happened', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 16M }\nvolumes: { a: { size: 8M } }')
  const command = (...args: string[]): Promise<string> =>
    thinfs(args[0]!, pool.folder, ...args.slice(1))
  await command('create', 'b', '--size', '1M')
  await command('snapshot', 'a', 'c')
  await command('rename', 'b', 'd')
  await command('resize', 'd', '2M')
  await command('remove', 'c', '--yes')
  await pool.sh('truncate -s 4M e; mv e f; rm f; stat none || true; cat none || true')
  await pool.failure('mkdir x; touch thin-3')
  await pool.umount()
  const log = pool.log()
  t.same(
    log
      .filter(({ volume }) => volume !== undefined)
      .map(({ msg, volume }) => `${volume}: ${msg.replace('volume ', '')}`),
    [
      'b: created',
      'c: created as snapshot of a',
      'b: renamed to d',
      'd: resized to 2097152 bytes',
      'c: removed',
      'e: created',
      'e: resized to 4194304 bytes',
      'e: renamed to f',
      'f: removed',
    ],
  )
  t.same(
    log.filter(({ name }) => name === 'daemon').map(({ msg }) => msg),
    ['engine serves', 'mounted', 'unmounted'],
  )
  const text = readFileSync(join(pool.folder, 'thinfs.log'), 'utf8')
  t.notMatch(text, /\\n +at |"stack"/, 'no stack traces')
  t.same(
    log.filter(({ level }) => level > 30),
    [],
    'nothing that would worry anybody',
  )
  await pool.close(t)
})

t.test('--json: the same, mounted or not, from the folder or the mount point', onMount, async t => {
  const pool = await MountedPool.make(
    t,
    'data: { size: 64M }\nvolumes: { a: { size: 8M }, "a@1": { size: 8M, snapshot_of: a } }',
  )
  const json = async (reference: string, command: string, ...more: string[]): Promise<unknown> =>
    JSON.parse(await thinfs(command, reference, '--json', ...more))
  await pool.sh('dd if=/dev/urandom of=a bs=64K count=5 conv=notrunc,fsync status=none')
  const volumes = [
    {
      ...{ name: 'a', devId: 0, size: 8 * MIB, mapped: 5 * 65536, exclusive: 5 * 65536 },
      ...{ origin: null, created: Number, open: false },
    },
    {
      ...{ name: 'a@1', devId: 1, size: 8 * MIB, mapped: 0, exclusive: 0 },
      ...{ origin: 'a', created: Number, open: false },
    },
  ]
  t.match(await json(pool.folder, 'list', '--exclusive'), volumes)
  t.match(await json(pool.path, 'list', '--exclusive'), volumes)
  const unasked = volumes.map(volume => ({ ...volume, exclusive: null }))
  t.match(await json(pool.path, 'list'), unasked, 'exclusive space is counted when asked for')
  const status = {
    ...{ name: 'test', mode: 'write', reason: null, needsCheck: false, dataBlockSize: 65536 },
    ...{ discards: 'passdown', onFull: 'queue', volumes: 2, belowLowWater: false },
    data: { path: pool.data, blocks: 1024, usedBlocks: 5 },
    metadata: { path: pool.metadata, blocks: 4096, usedBlocks: Number },
  }
  const mount = { mountPoint: pool.path, pid: Number, enginePid: Number, since: Number }
  t.match(await json(pool.path, 'status'), { ...status, mount })
  t.match(await json(pool.path, 'check'), { problems: [], devices: 2, mappedBlocks: 5 })
  // The kernel's own words: transaction, metadata, data, held root, mode, discards, on full.
  const { dm } = await pool.status()
  t.match(
    dm.pool,
    /^0 131072 thin-pool \d+ \d+\/4096 5\/1024 - rw discard_passdown queue_if_no_space - \d+ ?$/,
  )
  t.equal(dm.volumes.find(({ name }) => name === 'a')!.line, '0 16384 thin 640 639')
  await pool.umount()
  t.match(await json(pool.folder, 'list', '--exclusive'), volumes)
  t.match(await json(pool.folder, 'status'), {
    ...status,
    mode: 'write',
    reason: null,
    mount: null,
  })
  t.match(await json(pool.folder, 'check'), { problems: [], devices: 2, mappedBlocks: 5 })
  t.equal((await attempt('test', '-e', join(pool.folder, 'control.sock'))).status, 1)
  await pool.close(t)
})
