/**
 * Every command on a pool that is not mounted. thin_check and thin_dump, which are not ours, judge
 * the metadata file after each change.
 */
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { join, resolve } from 'node:path'
import t, { type Test } from 'tap'
import type { VolumeInfo } from '../../src/volumes/index.js'
import { done, PROGRAM, refused, run, thinfs } from './command-line.js'

const GIB = 2 ** 30

async function makePool(t: Test, ...options: string[]): Promise<string> {
  const pool = join(t.testdir({}), 'pool')
  await done(t, 'init', pool, '--data-size', '1G', ...options)
  return pool
}

/** The device ids in the metadata file, as thin_dump finds them, once thin_check has passed it. */
async function devices(t: Test, pool: string): Promise<number[]> {
  const metadata = join(pool, 'metadata')
  t.match(await run('thin_check', metadata), { status: 0 }, 'thin_check')
  const { stdout } = await run('thin_dump', metadata)
  return [...stdout.matchAll(/<device dev_id="(\d+)"/g)].map(([, id]) => Number(id))
}

async function list(t: Test, pool: string, ...options: string[]): Promise<Map<string, VolumeInfo>> {
  const volumes: VolumeInfo[] = JSON.parse(await done(t, 'list', pool, '--json', ...options))
  return new Map(volumes.map(volume => [volume.name, volume]))
}

t.test('init makes sparse files, and a pool.yaml that it reads the same again', async t => {
  const pool = await makePool(t, '--volume', 'web=10G', '--volume', 'a=b=512K')
  const data = statSync(join(pool, 'data'))
  t.strictSame([data.size, data.blocks], [GIB, 0])
  t.strictSame(await devices(t, pool), [0, 1])
  const volumes = await list(t, pool)
  t.strictSame(volumes.get('web')!.size, 10 * GIB)
  t.strictSame(volumes.get('a=b')!.size, 512 * 1024)
  const taken = /metadata: it is not empty: it has data; .*--force overwrites it/
  await refused(t, 1, taken, 'init', pool)
  await refused(t, 1, /\/volumes\.json: it is there already/, 'init', pool, '--force')
  await refused(t, 2, /pool\.yaml is there/, 'init', pool, '--data-size', '1G')
})

t.test('init --dry-run says what would be made, and makes nothing', async t => {
  const folder = t.testdir({})
  const pool = join(folder, 'pool')
  const options = ['--data-size', '1G', '--volume', 'a=1G']
  const dry = await done(t, 'init', pool, ...options, '--dry-run')
  t.strictSame(dry.split('\n'), [
    `${pool}/pool.yaml: would be made`,
    `${pool}/data: would be made, 1G`,
    `${pool}/metadata: would be made, 16M`,
    `${pool}/volumes.json: would be made`,
    `${pool}/journal: would be made`,
    '',
  ])
  t.notOk(existsSync(pool))
  await refused(t, 2, /metadata\.size: 1M is not/, 'init', pool, '--metadata-size', '1M', '-n')
  await done(t, 'init', pool, ...options)
  t.equal(statSync(join(pool, 'metadata')).size, 2 ** 24)
  await refused(t, 1, /metadata: it is not empty.*--force/, 'init', pool, '--dry-run')
  await refused(t, 1, /volumes\.json: it is there already/, 'init', pool, '-n', '--force')

  const image = join(folder, 'image')
  t.match(await run('truncate', '-s', '8M', image), { status: 0 })
  t.match(await run('mkfs.ext4', '-q', image), { status: 0 })
  const before = readFileSync(image)
  const file = join(folder, 'pool.yaml')
  writeFileSync(file, `pool: p\ndata: { path: ${image} }\n`)
  const ext4 = 'a signature of ext4 at byte 1080'
  await refused(t, 1, `${image}: it is not empty: it has ${ext4}`, 'init', file, '--dry-run')
  const { files } = JSON.parse(await done(t, 'init', file, '--dry-run', '--force', '--json'))
  t.strictSame(files[0], { path: image, size: 8 * 2 ** 20, isNew: false, holds: ext4 })
  t.ok(readFileSync(image).equals(before))
})

t.test('init follows a pool.yaml that is there', async t => {
  const folder = t.testdir({
    'ci.yaml':
      'pool: ci\ndata: {size: 64M}\nmetadata: {size: 4M}\nvolumes: {web: {size: 1G, id: 7}}',
  })
  const file = join(folder, 'ci.yaml')
  const config = JSON.parse(await done(t, 'init', file, '--json'))
  t.match(config, { file, data: { path: join(folder, 'data'), size: 64 * 2 ** 20 } })
  t.equal(statSync(join(folder, 'metadata')).size, 4 * 2 ** 20)
  t.strictSame(await devices(t, folder), [7])
  t.equal((await list(t, file)).get('web')!.devId, 7)
})

t.test('init that is refused leaves nothing behind', async t => {
  const pool = join(t.testdir({}), 'pool')
  const cases: [line: RegExp, ...options: string[]][] = [
    [/: data_block_size: 100K is not allowed; a multiple of 64K/, '--block-size', '100K'],
    [/: 1Q is not a size/, '--data-size', '1Q'],
    [/: metadata\.size: 1M is not allowed/, '--metadata-size', '1M'],
    [/: volumes: "a\/b": it has a '\/'/, '--volume', 'a/b=1G'],
    [/: --volume web: NAME=SIZE/, '--volume', 'web'],
    [/: nbd:h:1:exportname=d: is no address that is known; rbd:/, '--data', 'nbd:h:1:exportname=d'],
    [/: ndb:\/\/…@h\/x: is no address that is known/, '--metadata', 'ndb://me:secret@h/x'],
    [/: rdb:p\/i: is no address of an export; nbd:/, '--state', 'rdb:p/i'],
  ]
  for (const [line, ...options] of cases) {
    await refused(t, 2, line, 'init', pool, ...options)
    t.notOk(existsSync(pool))
  }
  // The data file is in the way only when pool.yaml has been written.
  mkdirSync(pool)
  writeFileSync(join(pool, 'data'), 'precious')
  const taken = /data: it is not empty: it has data; .*--force overwrites it/
  await refused(t, 1, taken, 'init', pool)
  t.notOk(existsSync(join(pool, 'pool.yaml')))
  t.equal(readFileSync(join(pool, 'data'), 'utf8'), 'precious')
})

t.test('create, snapshot, rename, resize, remove', async t => {
  const pool = await makePool(t)
  t.equal(await done(t, 'create', pool, 'web', '--size', '10G'), 'web: 10G, device id 0\n')
  t.strictSame(await devices(t, pool), [0])

  const made = JSON.parse(
    await done(t, 'create', pool, 'db', '--size', '1.5G', '--id', '77', '--json'),
  )
  t.match(made, {
    name: 'db',
    devId: 77,
    size: 1.5 * GIB,
    mapped: 0,
    exclusive: null,
    origin: null,
    open: false,
  })
  t.strictSame(await devices(t, pool), [0, 77])

  t.equal(
    await done(t, 'snapshot', pool, 'web', 'web-before', '--id', '5'),
    'web-before: 10G, device id 5, snapshot of web\n',
  )
  t.match(JSON.parse(await done(t, 'snapshot', pool, 'web-before', 'deep', '--json')), {
    origin: 'web-before',
  })
  t.strictSame(await devices(t, pool), [0, 5, 77, 78])

  t.equal(await done(t, 'rename', pool, 'deep', 'deeper one'), '')
  t.equal(JSON.parse(await done(t, 'rename', pool, 'web', 'www', '--json')).name, 'www')

  const sizes: [text: string, size: number][] = [
    ['20G', 20 * GIB],
    ['+512K', 20 * GIB + 2 ** 19],
    ['-0.5G', 19.5 * GIB + 2 ** 19],
    ['-512K', 19.5 * GIB],
  ]
  for (const [text, size] of sizes) {
    t.equal(
      JSON.parse(await done(t, 'resize', pool, 'www', text, '--shrink', '--json')).size,
      size,
      text,
    )
  }
  t.equal(await done(t, 'resize', pool, 'www', '3G', '--shrink'), 'www: 3G\n')
  await devices(t, pool)

  const removed = JSON.parse(await done(t, 'remove', pool, 'www', 'db', '--yes', '--json'))
  t.strictSame(removed, { removed: ['www', 'db'] })
  t.strictSame(await devices(t, pool), [5, 78])
  const left = await list(t, pool)
  t.strictSame([...left.keys()].sort(), ['deeper one', 'web-before'])
  t.equal(left.get('web-before')!.origin, null, 'its origin is gone')
})

t.test('remove asks on a terminal, and without one is refused but for --yes', async t => {
  const pool = await makePool(t, '--volume', 'a=1G', '--volume', 'b=1G')
  const names = async () =>
    (await done(t, 'list', pool, '--noheadings', '-o', 'name')).trimEnd().split('\n')
  const line = /removing volumes has to be confirmed, .* --yes does it without asking/
  await refused(t, 2, line, 'remove', pool, 'a')
  const dry = await done(t, 'remove', pool, 'a', 'b', '--dry-run')
  t.match(dry, /^a \(1G, 0 mapped, 0 of it .*\) would be removed\nb .*\n$/)
  await refused(t, 1, /none: no volume has the name/, 'remove', pool, 'none', '--dry-run')
  t.strictSame(await names(), ['a', 'b'])
  const asked = (answer: string) => {
    const command = `exec ${process.execPath} ${PROGRAM} remove ${pool} a`
    return run('sh', '-c', `echo ${answer} | script -qec '${command}' /dev/null`)
  }
  const no = await asked('no')
  t.equal(no.status, 1)
  t.match(
    no.stdout,
    /Remove a \(1G, 0 mapped\)\? \[y\/N\] [\s\S]*thinfs: nothing was done \(CANCELLED\)/,
  )
  t.strictSame(await names(), ['a', 'b'])
  t.equal((await asked('y')).status, 0)
  t.strictSame(await names(), ['b'])
})

t.test('every command that removes something for good asks first', async t => {
  const pool = await makePool(t, '--volume', 'web=1G')
  await done(t, 'snapshot', pool, 'web', 'web@1')
  await done(t, 'snapshot', pool, 'web', 'web@2')
  const list = () => done(t, 'list', pool, '--noheadings', '-o', 'name')
  const before = await list()
  const prune = ['prune', pool, 'web', '--keep-last', '1']
  for (const args of [
    prune,
    ['rollback', pool, 'web', 'web@1', '--no-keep'],
    ['receive', pool, 'web', '--abort'],
  ]) {
    await refused(t, 2, /has to be confirmed, and there is no terminal; --yes does it/, ...args)
  }
  const asked = (answer: string) => {
    const command = `exec ${process.execPath} ${PROGRAM} ${prune.join(' ')}`
    return run('sh', '-c', `echo ${answer} | script -qec '${command}' /dev/null`)
  }
  const no = await asked('n')
  t.match(no, { status: 1, stdout: /Remove web@1\? \[y\/N\] [\s\S]*\(CANCELLED\)/ })
  t.equal(await list(), before)
  t.equal((await asked('y')).status, 0)
  t.equal(await list(), 'web\nweb@2\n')
  t.match(await done(t, ...prune, '--yes'), /web@2 .*kept: /)
})

t.test('what cannot be done is refused in one line, and changes nothing', async t => {
  const pool = await makePool(t, '--volume', 'web=1G')
  const before = [await list(t, pool), await devices(t, pool)]
  const web = ['--size', '1G']
  const cases: [status: number, line: RegExp, ...args: string[]][] = [
    [1, /web: a volume has the name \(VOLUME_EXISTS\)/, 'create', pool, 'web', ...web],
    [1, /device id 0 is in use \(DEVICE_EXISTS\)/, 'create', pool, 'x', ...web, '--id', '0'],
    [1, /none: no volume has the name \(VOLUME_MISSING\)/, 'snapshot', pool, 'none', 'x'],
    [1, /web: a volume has the name \(VOLUME_EXISTS\)/, 'snapshot', pool, 'web', 'web'],
    [1, /none: no volume has the name \(VOLUME_MISSING\)/, 'remove', pool, 'web', 'none', '-y'],
    [1, /none: no volume has the name \(VOLUME_MISSING\)/, 'rename', pool, 'none', 'x'],
    [1, /none: no volume has the name \(VOLUME_MISSING\)/, 'resize', pool, 'none', '1G'],
    [1, /none: no volume has the name \(VOLUME_MISSING\)/, 'resize', pool, 'none', '+1G'],
    [1, /wb: no volume has the name; did you mean web\? \(V/, 'rename', pool, 'wb', 'c'],
    [1, /weeb: .*; did you mean web\? \(V/, 'map', pool, 'weeb'],
    [1, /\(DEVICE_MISSING\)/, 'message', pool, 'delete 9'],
    [1, /\(DEVICE_MISSING\)/, 'message', pool, '0', 'delete 9'],
    [1, /the pool is not mounted; .* \(NOT_MOUNTED\)/, 'umount', pool],
    [1, /the pool is not mounted; .* \(NOT_MOUNTED\)/, 'attach', pool, 'web'],
    [1, /the pool is not mounted; .* \(NOT_MOUNTED\)/, 'detach', pool, 'web'],
    [2, /"a\/b": it has a '\/'/, 'create', pool, 'a/b', ...web],
    [2, /"thin-1": /, 'rename', pool, 'web', 'thin-1'],
    [2, /1Q is not a size/, 'create', pool, 'x', '--size', '1Q'],
    [2, /size 100: /, 'create', pool, 'x', '--size', '100'],
    [2, /device id is 0 to 16777215/, 'create', pool, 'x', ...web, '--id', '16777216'],
    [2, /device id is 0 to 16777215/, 'create', pool, 'x', ...web, '--id', '1e3'],
    [2, /'--size <size>' not specified/, 'create', pool, 'x'],
    [2, /-2G is more than the 1G/, 'resize', pool, 'web', '-2G'],
    [2, /web: a volume needs a size/, 'resize', pool, 'web', '0'],
    [2, /unknown option '--frob'/, 'resize', pool, 'web', '--frob'],
    [2, /web: it is given twice/, 'init', `${pool}2`, '--volume', 'web=1G', '--volume', 'web=2G'],
    [2, /create_thick: allowed are/, 'message', pool, 'create_thick', '0'],
  ]
  for (const [status, line, ...args] of cases) await refused(t, status, line, ...args)
  t.strictSame([await list(t, pool), await devices(t, pool)], before)
})

t.test('a pool.yaml that is wrong is named with line and column', async t => {
  const file = join(t.testdir({ 'pool.yaml': 'pool: main\ndata_block_size: 100K\n' }), 'pool.yaml')
  await refused(t, 1, `thinfs: ${file}:2:18: data_block_size: 100K is not allowed; `, 'list', file)
})

t.test('list: a table like that of lvs', async t => {
  const pool = await makePool(t, '--volume', 'web=10G')
  await done(t, 'snapshot', pool, 'web', 'copy')
  const listed = async (...options: string[]): Promise<string[]> => {
    const lines = (await done(t, 'list', pool, ...options)).trimEnd().split('\n')
    return lines.map(line => line.split(/ {2,}/).join())
  }
  const [head, copy, web] = await listed()
  t.equal(head, 'NAME,ID,SIZE,MAPPED,DATA%,EXCLUSIVE,ORIGIN,CREATED,OPEN')
  t.match(copy, /^copy,1,10G,0,0\.00,-,web,\d{4}-\d\d-\d\d \d\d:\d\d,no$/)
  t.match(web, /^web,0,10G,0,0\.00,-,-,\d{4}-\d\d-\d\d \d\d:\d\d,no$/)
  const counted = await listed('--exclusive')
  t.match(counted[1], /^copy,1,10G,0,0\.00,0,web,/)
})

t.test('messages in dm-thin words, and the status lines that they show in', async t => {
  const pool = await makePool(t)
  const [, id] = /transaction +(\d+)/.exec(await done(t, 'status', pool))!
  t.equal(await done(t, 'message', pool, 'create_thin 4'), '')
  t.strictSame(JSON.parse(await done(t, 'message', pool, 'create_snap', '9', '4', '--json')), {
    message: 'create_snap 9 4',
  })
  await done(t, 'message', pool, `set_transaction_id ${id} 1000`)
  t.strictSame(await devices(t, pool), [4, 9])
  await refused(t, 1, /\(TRANSACTION_MISMATCH\)/, 'message', pool, 'set_transaction_id 999 1001')
  await refused(t, 1, /\(DEVICE_EXISTS\)/, 'message', pool, 'create_thin 4')
  await done(t, 'message', pool, 'reserve_metadata_snap')
  await refused(t, 1, /\(SNAPSHOT_HELD\)/, 'message', pool, 'reserve_metadata_snap')
  t.match(await done(t, 'status', pool), /^metadata snapshot {2}block \d+$/m)
  t.match(await run('thin_check', join(pool, 'metadata')), { status: 0 })
  await done(t, 'message', pool, 'release_metadata_snap')
  await done(t, 'message', pool, 'delete 4')
  t.strictSame(await devices(t, pool), [9])

  // thin_dump has the transaction id from the superblock; the kernel's line begins with it.
  const { stdout: xml } = await run('thin_dump', join(pool, 'metadata'))
  const [, transaction] = /transaction="(\d+)"/.exec(xml)!
  const dm = JSON.parse(await done(t, 'status', pool, '--dm', '--json'))
  t.match(
    dm.pool,
    new RegExp(
      `^0 2097152 thin-pool ${transaction} \\d+/4096 0/16384 - ro no_discard_passdown queue_if_no_space - 1024 $`,
    ),
  )
  t.strictSame(dm.volumes, [{ name: 'thin-9', line: '0 0 thin 0 -' }])
  const text = await done(t, 'status', pool, '--dm')
  t.match(text, new RegExp(`^  transaction id +${transaction}$`, 'm'))
  t.match(text, /^ {2}used\/total data blocks +0\/16384$/m)
  t.match(text, /^ {2}highest mapped sector +-$/m)
})

t.test('status of a pool that is not mounted', async t => {
  const pool = await makePool(t, '--volume', 'web=1G', '--block-size', '128K')
  const status = JSON.parse(await done(t, 'status', pool, '--json'))
  t.match(status, {
    name: 'pool',
    mode: 'write',
    reason: null,
    needsCheck: false,
    dataBlockSize: 131072,
    data: { path: join(pool, 'data'), blocks: 8192, usedBlocks: 0 },
    lowWaterMarkBlocks: 1639,
    belowLowWater: false,
    volumes: 1,
    mount: null,
  })
  t.match(await done(t, 'status', pool), /^mode +write, when it is mounted\nmounted +no$/m)
  t.match(await done(t, 'status', pool), /^data +0 of 1G \(0\.00%\), .*\/data$/m)
})

t.test('check passes a good pool, and finds what thin_check finds', async t => {
  const pool = await makePool(t, '--volume', 'web=1G')
  t.match(await done(t, 'check', pool), /^1 devices, 0 mappings, 0 data blocks/)
  t.match(JSON.parse(await done(t, 'check', pool, '--json')), { problems: [], devices: 1 })

  // One flipped bit in the root of the mapping tree, which the superblock names at byte 320.
  const metadata = join(pool, 'metadata')
  const image = readFileSync(metadata)
  const root = Number(image.readBigUInt64LE(320))
  image.writeUInt8(image.readUInt8(root * 4096 + 100) ^ 1, root * 4096 + 100)
  writeFileSync(metadata, image)
  t.not((await run('thin_check', metadata)).status, 0)
  const { status, stderr } = await thinfs('check', pool)
  t.equal(status, 1)
  t.match(stderr, /^thinfs: [^\n]+ \(METADATA_CORRUPT\)\n$/)
})

t.test('check and status tell of files that do not belong together', async t => {
  const pool = await makePool(t, '--volume', 'web=1G')
  const data = join(pool, 'data')
  const labelled = async (label: string): Promise<void> => {
    t.match(await run('setfattr', '-n', 'user.thinfs.label', '-v', label, data), { status: 0 })
  }
  const right = (await run('getfattr', '--only-values', '-n', 'user.thinfs.label', data)).stdout
  const id = right.split(' ')[0]
  const status = async () => JSON.parse(await done(t, 'status', pool, '--json'))

  const mismatches = {
    [`${id} 0`]: /this is an older copy/,
    [right.replace(/\w/g, '1')]: /of the pool 1111/,
  }
  for (const [label, why] of Object.entries(mismatches)) {
    await labelled(label)
    const { stderr, stdout } = await thinfs('check', pool)
    t.match(stdout, why)
    t.match(stderr, /: the check found an error \(POOL_MISMATCH\)\n$/)
    t.match(await status(), { mode: 'fail', reason: why, refusal: why, mount: null })
    t.match(await done(t, 'status', pool), /^mode +fail: mounting it is refused: .*\nmounted +no$/m)
    await refused(t, 1, why, 'create', pool, 'more', '--size', '1G')
  }
  await labelled(`${id} 99`)
  const behind = /as of commit 99, the journal knows \d+: metadata and journal may be older copies/
  t.match(await status(), { mode: 'write', refusal: null, warnings: [behind] })

  await labelled(right)
  t.match(await status(), { mode: 'write', refusal: null, warnings: [] })
  const table = join(pool, 'volumes.json')
  writeFileSync(
    table,
    readFileSync(table, 'utf8').replace(/"transaction_id": \d+/, '"transaction_id": 9'),
  )
  t.match((await thinfs('check', pool)).stderr, /\(POOL_MISMATCH\)\n$/)
})

t.test('a data.size that is less than the pool has is told, and has no effect', async t => {
  const pool = await makePool(t, '--volume', 'web=1G')
  const file = join(pool, 'pool.yaml')
  writeFileSync(file, readFileSync(file, 'utf8').replace('size: 1G', 'size: 512M'))
  const told = /pool\.yaml: data\.size is 512M, the pool has 1G: thinfs shrink makes it smaller/
  t.match(JSON.parse(await done(t, 'status', pool, '--json')), {
    data: { blocks: 16384 },
    warnings: [told],
  })
  t.match(await done(t, 'status', pool), /^warning +.*data\.size is 512M/m)
})

t.test('a volume without a size is refused', async t => {
  const pool = await makePool(t)
  await refused(
    t,
    2,
    /--size 0: a volume needs a size; .*\(BAD_ARGUMENT\)/,
    'create',
    pool,
    'a',
    '--size',
    '0',
  )
  t.equal((await list(t, pool)).size, 0)
})

t.test('a pool that another program made: names for its devices come from pool.yaml', async t => {
  // thin_restore makes the metadata, as it would for a pool of LVM's.
  const folder = t.testdir({
    'pool.yaml':
      'pool: lvm\ndata: {size: 64M}\nmetadata: {size: 4M}\nvolumes: {root: {size: 32M, id: 3}}',
    'lvm.xml': `<superblock uuid="" time="1" transaction="5" flags="0" version="2" data_block_size="128" nr_data_blocks="1024">
      <device dev_id="3" mapped_blocks="2" transaction="0" creation_time="0" snap_time="1">
        <range_mapping origin_begin="0" data_begin="10" length="2" time="0"/>
      </device>
      <device dev_id="8" mapped_blocks="1" transaction="1" creation_time="1" snap_time="1">
        <single_mapping origin_block="7" data_block="10" time="0"/>
      </device>
    </superblock>`,
  })
  for (const [file, size] of [
    ['metadata', '4M'],
    ['data', '64M'],
  ] as const) {
    await run('truncate', '-s', size, join(folder, file))
  }
  t.match(
    await run('thin_restore', '-i', join(folder, 'lvm.xml'), '-o', join(folder, 'metadata')),
    { status: 0 },
  )

  await done(t, 'status', folder)
  const volumes = await list(t, folder, '--exclusive')
  t.strictSame([...volumes.keys()].sort(), ['root', 'thin-8'])
  t.match(volumes.get('root'), {
    devId: 3,
    size: 32 * 2 ** 20,
    mapped: 131072,
    exclusive: 65536,
    created: null,
  })
  t.match(volumes.get('thin-8'), { devId: 8, size: 8 * 65536, mapped: 65536, exclusive: 0 })
  t.strictSame(await devices(t, folder), [3, 8])
})

t.test('POOL is a pool.yaml, or the folder that has one', async t => {
  const pool = await makePool(t)
  for (const reference of [pool, join(pool, 'pool.yaml'), resolve(pool, '../pool/')]) {
    t.equal(JSON.parse(await done(t, 'status', reference, '--json')).name, 'pool')
  }
  await refused(
    t,
    1,
    /: no pool\.yaml in that folder.*\(NOT_A_POOL\)/,
    'status',
    resolve(pool, '..'),
  )
})

t.test('too few open files: one line, which names the limit', async t => {
  const pool = await makePool(t)
  for (const limit of [22, 20, 19]) {
    const program = `ulimit -n ${limit}; exec "$0" "$1" list "$2"`
    const { status, stdout, stderr } = await run(
      'bash',
      ...['-c', program, process.execPath, PROGRAM, pool],
    )
    t.match({ status, stdout }, { status: 1, stdout: '' })
    t.match(stderr, /^thinfs: .*(too many open files|EMFILE).*ulimit -n 1024.*\n$/, `${limit}`)
    t.equal(stderr.split('\n').length, 2)
  }
})
