// Goal: whoever has a disk of LVM's, or a folder of Docker's, reads the volumes in it as they were,
// and nothing of it changes; or goes on with the pool, which stays one that the kernel would take.
// Method: a disk and a folder made by LVM, Docker and the kernel; they said what is in the volumes.
import { readFileSync, rmSync, statSync } from 'node:fs'
import { dirname, join } from 'node:path'
import t, { type Test } from 'tap'
import { dockerFolder, expectedOfLvm, lvmImage } from '../support/foreign-pools.js'
import {
  attempt,
  attemptThinfs,
  failure,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
} from '../support/mounted-pool.js'

/** A pool whose pool.yaml `thinfs adopt` has written. */
const adopted = (t: Test, make: (base: string) => string): Promise<MountedPool> =>
  MountedPool.prepare(t, '', async file => {
    rmSync(file)
    await thinfs('adopt', make(dirname(dirname(file))), dirname(file))
  })

const sha256 = async (path: string): Promise<string> =>
  (await run('sha256sum', path)).split(' ', 1)[0]!

t.test("LVM's disk", needs('/dev/fuse'), async t => {
  const pool = await adopted(t, base => {
    const path = join(base, 'disk.img')
    lvmImage(path)
    return path
  })
  const image = join(pool.base, 'disk.img')
  const wanted = expectedOfLvm().get('lv')!

  await t.test('is read as the kernel read it, and stays as it is', async t => {
    // A write sets both.
    const times = (): number[] => [statSync(image).mtimeMs, statSync(image).ctimeMs]
    const before = times()
    await pool.mount('-o', 'ro')
    for (const [name, size, sum] of wanted) {
      t.equal(statSync(join(pool.path, name!)).size, Number(size), name)
      t.equal(await sha256(join(pool.path, name!)), sum, name)
    }
    t.match(await failure(pool.path, 'echo x > app'), /Read-only file system/)
    const volumes = JSON.parse(await thinfs('list', pool.folder, '--json'))
    t.match(
      volumes.find((v: { name: string }) => v.name === 'snap_one'),
      { devId: 3, origin: 'base' },
    )
    const again = join(pool.base, 'again')
    const refused = await attemptThinfs('adopt', image, pool.folder)
    t.match(refused, { status: 2, stderr: /pool\.yaml is there already.*\(BAD_ARGUMENT\)/ })
    await thinfs('adopt', image, again) // readers do not mind each other
    await pool.umount()
    t.same(times(), before)
    rmSync(join(again, 'pool.yaml'))
    const part = join(pool.base, 'part.img')
    await run('dd', `if=${image}`, `of=${part}`, 'bs=1M', 'count=100', 'conv=sparse', 'status=none')
    const cut = await attemptThinfs('adopt', part, join(pool.base, 'cut'))
    t.match(cut, { status: 1, stderr: /part.img: it ends before byte \d+.*cut off.*POOL_MISMATCH/ })
  })

  await t.test('is written to, and each other byte of the disk stays', async t => {
    const yaml = readFileSync(join(pool.folder, 'pool.yaml'), 'utf8')
    const parts = yaml.matchAll(/offset: (\d+)M, size: (\d+)M/g)
    const ours = [...parts].map(([, offset, size]) => [Number(offset), Number(size)] as const)
    t.equal(ours.length, 4)
    /** The sum of all that is not the pool's. */
    const others = (): Promise<string> =>
      run(
        'python3',
        '-c',
        `
import hashlib
sum, at = hashlib.sha256(), 0
with open(${JSON.stringify(image)}, 'rb') as disk:
    for offset, size in sorted(${JSON.stringify(ours)}) + [(512, 0)]:
        disk.seek(at << 20)
        sum.update(disk.read((offset - at) << 20))
        at = offset + size
print(sum.hexdigest())`,
      )
    const before = await others()
    await pool.mount()
    await sh(
      pool.path,
      'head -c 5M /dev/urandom > ../random; dd if=../random of=app bs=1M seek=30 conv=notrunc,fsync status=none',
    )
    await thinfs('snapshot', pool.folder, 'base', 'new')
    await sh(pool.path, 'fallocate -p -o 33M -l 1M app')
    const mounting = await attemptThinfs('mount', pool.folder, pool.path)
    t.equal(mounting.status, 1)
    await pool.killEngine()
    await sh(
      pool.path,
      'cmp <(dd if=app bs=1M skip=30 count=3 status=none) <(head -c 3M ../random)',
    )
    await sh(pool.path, 'cmp -n 1M <(dd if=app bs=1M skip=33 count=1 status=none) /dev/zero')
    await pool.umount()
    t.equal(await others(), before)
    t.match(await attemptThinfs('check', pool.folder, '--deep'), { status: 0, stderr: '' })
    await pool.mount()
    const [, , sum] = wanted.find(([name]) => name === 'base')!
    t.equal(await sha256(join(pool.path, 'new')), sum)
    await pool.umount()
    const metadata = join(pool.base, 'metadata')
    await run('dd', `if=${image}`, `of=${metadata}`, 'bs=1M', 'skip=157', 'count=4', 'status=none')
    t.match(await attempt('thin_check', metadata), { status: 0 })
  })
})

t.test("Docker's folder: each device has its filesystem", needs('/dev/fuse'), async t => {
  const pool = await adopted(t, dockerFolder)
  const folder = join(pool.base, 'docker')
  const sum = (): Promise<string> =>
    sh(folder, 'find . -type f -exec sha256sum {} + | sort | sha256sum')
  const before = await sum()
  await pool.mount('-o', 'ro')
  const names = (await pool.sh('ls')).split('\n')
  t.equal(names.length, 10)
  for (const name of names) {
    t.match(await attempt('e2fsck', '-fn', join(pool.path, name)), { status: 0 }, name)
  }
  await pool.umount()
  t.equal(await sum(), before)
})
