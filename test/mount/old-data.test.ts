// Goal: on a real mount no volume shows what another wrote, or it itself before it was cut. Method:
// volumes full of a byte of their own are removed, cut, discarded and made anew, on a host's file
// with holes and on a block device, which has none; what is read is counted byte by byte.
import { writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { attempt, MountedPool, needs, python, run, sh, thinfs } from '../support/mounted-pool.js'

const MIB = 2 ** 20
const onMount = needs('/dev/fuse', '/dev/loop-control')

/** Bytes of a file in the mount that are not zero, by value. */
async function contents(pool: MountedPool, name: string): Promise<Record<string, number>> {
  const program = `
import collections, json
count = collections.Counter(open('${name}', 'rb').read())
print(json.dumps({chr(byte): n for byte, n in count.items() if byte}))`
  return JSON.parse(await run('env', '-C', pool.path, 'python3', '-c', program))
}

/** Fills a range of a volume with a letter. */
const fill = (name: string, letter: string, offset: number, length: number): string =>
  `head -c ${length} /dev/zero | tr '\\0' ${letter} |
   dd of=${name} bs=64K seek=${offset} oflag=seek_bytes iflag=fullblock conv=notrunc,fsync status=none`

async function showsNothingOld(t: Test, pool: MountedPool): Promise<void> {
  const holds = async (name: string, wanted: Record<string, number>): Promise<void> =>
    void t.same(await contents(pool, name), wanted, name)
  // Most of the data is some volume's, goes, and is the next one's.
  await pool.sh(`truncate -s 24M a; ${fill('a', 'A', 0, 24 * MIB)}; rm a; sync .`)
  await pool.sh('truncate -s 24M b')
  await holds('b', {})
  await python(
    pool.path,
    `import os; f = os.open('b', os.O_WRONLY)
for at in range(700, 25000000, 65000): os.pwrite(f, b'BBB', at)
os.fsync(f)`,
  )
  await holds('b', { B: 3 * 385 })
  await pool.sh('rm b; sync .; fallocate -l 24M c; sync c')
  await holds('c', {})

  // A tail that was cut is gone, wherever the cut went.
  await pool.sh(`${fill('c', 'C', 0, 8 * MIB)}; truncate -s 1000001 c; truncate -s 8M c`)
  await holds('c', { C: 1000001 })
  await thinfs('resize', pool.folder, 'c', '512K', '--shrink')
  await thinfs('resize', pool.folder, 'c', '8M')
  await holds('c', { C: 512 * 1024 })
  await pool.sh('fallocate -p -o 100 -l 300000 c; fallocate -z -o 400000 -l 1 c; sync c')
  await holds('c', { C: 512 * 1024 - 300001 })

  // A snapshot's holes, and blocks of it that are written to in part.
  await thinfs('snapshot', pool.folder, 'c', 's')
  await pool.sh(`${fill('c', 'D', 0, 8 * MIB)}; ${fill('s', 'S', 3 * MIB + 5, 10)}`)
  await holds('s', { C: 512 * 1024 - 300001, S: 10 })
  await holds('c', { D: 8 * MIB })
  await pool.sh(
    `rm c; sync .; truncate -s 20M e; ${fill('e', 'E', 12345, 100)}; fallocate -l 20M e`,
  )
  await holds('e', { E: 100 })
  await pool.remount()
  await holds('e', { E: 100 })
  await holds('s', { C: 512 * 1024 - 300001, S: 10 })
}

t.test('in a file with holes', onMount, async t => {
  const pool = await MountedPool.make(t, 'data: { size: 32M }')
  await showsNothingOld(t, pool)
  t.match(JSON.parse(await thinfs('check', pool.folder, '--deep', '--json')), {
    problems: [],
    data: { unreadableBlocks: 0, strayBlocks: 0 },
  })
  await pool.close(t)
})

t.test('on a file system in user space, without holes and attributes', onMount, async t => {
  let host = ''
  const pool = await MountedPool.prepare(t, '', async file => {
    const base = dirname(dirname(file))
    host = join(base, 'host')
    await sh(base, 'mkdir below host; chmod 700 below; bindfs --xattr-none below host')
    const [data, metadata] = [join(host, 'data'), join(host, 'metadata')]
    writeFileSync(
      file,
      `pool: test\ndata: { path: ${data}, size: 32M }\nmetadata: { path: ${metadata} }\n`,
    )
    await thinfs('init', file)
  })
  t.teardown(() => attempt('umount', '--lazy', host))
  await pool.mount()
  await showsNothingOld(t, pool)
  const verify = '--size=4M --verify=crc32c --verify_state_save=0 --ioengine=psync --direct=1'
  const write = `fio --name=v --filename=f --rw=randwrite --bsrange=4k-64k ${verify}`
  await pool.sh(`rm e s; sync .; truncate -s 8M f; ${write} > ../fio.log`)
  await thinfs('snapshot', pool.folder, 'f', 'g')
  const sum = await pool.sh('sha256sum < g')
  await pool.sh(`${write} --randseed=5 > ../fio.log`)
  await pool.killEngine()
  await pool.sh('fallocate -p -o 1M -l 2M f; sync f')
  t.equal(await pool.sh('sha256sum < g'), sum, 'a snapshot keeps what it has')
  await pool.umount()
  t.match(JSON.parse(await thinfs('check', pool.folder, '--deep', '--json')), {
    problems: [],
    data: { unreadableBlocks: 0, strayBlocks: null },
  })
  await run('thin_check', '-q', join(host, 'metadata'))
  await run('umount', host)
})

t.test('on a block device', onMount, async t => {
  let device = ''
  const pool = await MountedPool.prepare(t, '', async file => {
    const base = dirname(dirname(file))
    const image = join(base, 'image')
    await sh(base, "head -c 32M /dev/zero | tr '\\0' X > image")
    device = await run('losetup', '--find', '--show', image)
    writeFileSync(file, `pool: test\ndata: { path: ${device} }\n`)
    await thinfs('init', file)
  })
  t.teardown(() => attempt('losetup', '--detach', device))
  await pool.mount()
  await showsNothingOld(t, pool)
  t.match(JSON.parse(await thinfs('check', pool.folder, '--deep', '--json')), {
    problems: [],
    data: { unreadableBlocks: 0, strayBlocks: null },
  })
  await pool.umount()
})
