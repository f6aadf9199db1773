// Goal: a pool on images of Ceph is made, mounted, used, killed and mounted elsewhere as one in
// files is. Method: a cluster of three OSDs, a mount in a process of its own, an ordinary file
// beside it; fio reads back what it wrote while OSDs and engines are killed; thin_check judges the
// image as rbd exports it.
import { randomBytes } from 'node:crypto'
import { readFileSync, truncateSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { MIB } from '../../src/base/index.js'
import { attempt, attemptThinfs, MountedPool, run, thinfs, until } from '../support/mounted-pool.js'
import { thinCheck } from '../support/thin-tools.js'
import { CephRig, lacksCeph, POOL } from './rig/ceph.js'

const lacks = lacksCeph()

t.test('pools on a Ceph cluster', { skip: process.env.CI ? false : lacks }, async t => {
  const ceph = await CephRig.start(t, { osds: 3 })
  await ceph.addUser('host')
  const access = `ceph: { conf: ${ceph.conf}, user: host }\ncache: { size: 32M }`
  let nr = 0

  /** A mounted pool, whose stores of these names are images. */
  async function make(t: Test, sizes: Record<string, string>): Promise<MountedPool> {
    nr++
    const lines: string[] = []
    for (const [name, size] of Object.entries(sizes)) {
      await ceph.createImage(`${name}${nr}`, size)
      lines.push(`${name}: { rbd: ${POOL}/${name}${nr} }`)
    }
    const yaml = [
      ...lines,
      access,
      'volumes:',
      '  web: { size: 256M }',
      '  fs: { size: 256M }',
      '  load: { size: 256M }',
    ]
    return await MountedPool.make(t, yaml.join('\n'))
  }

  for (const [what, sizes] of Object.entries({
    'the data alone': { data: '1G' },
    'all of a pool': { data: '1G', metadata: '16M', state: '16M' },
  })) {
    await t.test(what, async t => {
      const pool = await make(t, sizes)
      const web = join(pool.path, 'web')
      const plain = join(pool.plain, 'web')
      writeFileSync(plain, '')
      truncateSync(plain, 256 * MIB)
      const random = join(pool.base, 'random')
      writeFileSync(random, randomBytes(16 * MIB))
      const same = async (why: string): Promise<void> => {
        t.equal((await attempt('cmp', web, plain)).status, 0, why)
      }

      await pool.both(t, `dd if=${random} of=web bs=1M seek=3 conv=notrunc,fsync status=none`)
      await thinfs('snapshot', pool.folder, 'web', 'before')
      await pool.both(
        t,
        `dd if=${random} of=web bs=64K count=60 seek=20 skip=90 conv=notrunc status=none`,
      )
      await pool.killEngine()
      await same('what nobody had flushed when the engine was killed')
      await pool.both(t, `dd if=${random} of=web bs=64K count=30 seek=900 conv=notrunc status=none`)
      await thinfs('restart', pool.folder)
      await same('what nobody had flushed when the engine was replaced')

      const file = join(pool.path, 'fs')
      await run('mkfs.ext4', '-q', '-F', file)
      const fio = run(
        'fio',
        ...['--name=verify', `--filename=${join(pool.path, 'load')}`, '--size=64M', '--bs=16k'],
        ...['--rw=randwrite', '--ioengine=psync', '--fsync=32', '--verify=crc32c'],
        ...['--do_verify=1', '--verify_fatal=1', `--aux-path=${pool.base}`],
      )
      const verified = t.resolves(fio, 'fio reads back what it wrote')
      await ceph.killOsd(0)
      await pool.killEngine()
      await verified
      await ceph.startOsd(0)
      await ceph.ready()

      await pool.both(t, 'fallocate -p -o 16M -l 2M web')
      await pool.umount()
      const check = await attemptThinfs('check', '--deep', pool.folder)
      t.equal(check.status, 0, `thinfs check --deep: ${check.stderr}`)
      await pool.mount()
      await same('after an unmount, as Ceph has it')
      t.equal((await attempt('e2fsck', '-fn', file)).status, 0, 'e2fsck')

      // What nobody flushed may be gone with the machine, and nothing else.
      await pool.both(t, 'sync web')
      await pool.kill()
      await pool.mount()
      await same('what was flushed before daemon and engine were killed')
      await pool.umount()
      if (!('metadata' in sizes)) return
      const exported = join(pool.base, 'exported')
      await ceph.run('rbd', 'export', '--no-progress', `${POOL}/metadata${nr}`, exported)
      const { status, stderr } = thinCheck(readFileSync(exported))
      t.equal(status, 0, `thin_check: ${stderr}`)
    })
  }

  await t.test('larger images are taken while the pool is mounted', async t => {
    const pool = await make(t, { data: '128M', metadata: '16M', state: '16M' })
    const dataBytes = async (): Promise<number> => {
      const { dataBlockSize, data } = await pool.status()
      return data.blocks * dataBlockSize
    }
    const random = join(pool.base, 'random')
    writeFileSync(random, randomBytes(200 * MIB))
    writeFileSync(join(pool.plain, 'web'), '')
    truncateSync(join(pool.plain, 'web'), 256 * MIB)
    t.equal(await dataBytes(), 128 * MIB)
    // Writes wait for space, and go on by themselves.
    const writing = pool.both(t, `dd if=${random} of=web bs=1M conv=notrunc,fsync status=none`)
    await until(async () => (await pool.status()).mode === 'out_of_data_space')
    for (const [name, size] of [
      ['data', '512M'],
      ['metadata', '32M'],
    ]) {
      await ceph.run('rbd', 'resize', '--no-progress', '--size', size!, `${POOL}/${name}${nr}`)
    }
    await writing
    await thinfs('extend', pool.folder)
    t.equal(await dataBytes(), 512 * MIB)
    t.equal((await pool.status()).metadata.blocks, (32 * MIB) / 4096)
    await pool.killEngine()
    t.equal((await attempt('cmp', join(pool.path, 'web'), join(pool.plain, 'web'))).status, 0)
    await pool.umount()
    const check = await attemptThinfs('check', '--deep', pool.folder)
    t.equal(check.status, 0, `thinfs check --deep: ${check.stderr}`)
  })

  await t.test('what is in use, or holds something, is refused', async t => {
    const pool = await make(t, { data: '256M', metadata: '16M', state: '16M' })
    const refused = await attemptThinfs('init', pool.folder)
    t.match(refused, { status: 1, stderr: /POOL_IN_USE/ }, 'by this machine')
    await pool.umount()
    t.match(await attemptThinfs('init', pool.folder), { status: 1, stderr: /not empty/ })
    const image = `${POOL}/data${nr}`
    const bench = ['bench', '--io-type', 'write', '--io-total', '1M', image]
    t.match(await ceph.run('rbd', ...bench), /elapsed/, 'its lock is free')
  })
})
