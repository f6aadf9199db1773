/**
 * Goal: images and volumes become each other, chains too, and share what the images share. Method:
 * chains that qemu-img and qemu-io made; qemu-img compare judges.
 */
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import t from 'tap'
import {
  attempt,
  attemptThinfs,
  MountedPool,
  needs,
  run,
  sh,
  thinfs,
} from '../support/mounted-pool.js'

const PROGRAM = join(import.meta.dirname, '../../bin/thinfs.js')
const MIB = 1024 * 1024

/** A chain of three, of which each overlay has data, zeros over data, and its own size. */
const CHAIN = `
  qemu-img create -q -f raw golden.raw 20M
  qemu-io -f raw -c 'write -P 1 0 2M' -c 'write -P 2 5M 1M' golden.raw
  qemu-img create -q -f qcow2 -b golden.raw -F raw mid.qcow2 30M
  qemu-io -c 'write -P 3 1M 64k' -c 'write -z 5M 512k' -c 'write -P 4 29M 100k' mid.qcow2
  qemu-img create -q -f qcow2 -b mid.qcow2 -F qcow2 top.qcow2
  qemu-io -c 'write -P 0 0 128k' -c 'write -P 5 10M 1000k' top.qcow2`

interface Volume {
  name: string
  origin: string | null
  size: number
  mapped: number
  exclusive: number
}

t.test('a chain becomes snapshots, and images come out again', needs('/dev/fuse'), async t => {
  const pool = await MountedPool.make(t, 'data: {size: 256M}\nmetadata: {size: 4M}')
  const { folder, plain, path } = pool
  await sh(plain, CHAIN)
  const image = (name: string): string => join(plain, name)
  t.match(
    await thinfs('import', folder, image('top.qcow2'), 'web'),
    new RegExp(`^web@golden: 20M, ${plain}/golden.raw\nweb@mid: 30M, .*mid.qcow2\nweb: 30M, .*top`),
  )
  for (const [name, file] of [
    ['web@golden', 'golden.raw'],
    ['web@mid', 'mid.qcow2'],
    ['web', 'top.qcow2'],
  ] as const) {
    const compared = await attempt(
      'qemu-img',
      'compare',
      '-F',
      'raw',
      image(file),
      join(path, name),
    )
    t.match(compared, { status: 0, stdout: 'Images are identical.\n' }, name)
  }
  const volumes: Volume[] = JSON.parse(await thinfs('list', folder, '--exclusive', '--json'))
  const of = (name: string): Volume => volumes.find(volume => volume.name === name)!
  t.match(of('web'), { origin: 'web@mid', size: 30 * MIB, exclusive: 1000 * 1024 + 24 * 1024 })
  t.match(of('web@mid'), { origin: 'web@golden', size: 30 * MIB })
  t.match(of('web@golden'), { origin: null, mapped: 3 * MIB })
  t.equal(of('web@mid').mapped, 3 * MIB - MIB / 2 + 128 * 1024, 'zeros are holes')
  t.equal(of('web').mapped, of('web@mid').mapped - 128 * 1024 + 1024 * 1024)

  await thinfs('export', folder, 'web', image('out.qcow2'))
  t.match(await run('qemu-img', 'compare', image('out.qcow2'), image('top.qcow2')), /identical/)
  t.match(JSON.parse(await run('qemu-img', 'info', '--output=json', image('out.qcow2'))), {
    format: 'qcow2',
    'virtual-size': 30 * MIB,
  })
  await thinfs('export', folder, 'web@golden', image('out.img'))
  await sh(
    plain,
    `cmp out.img ${path}/web@golden; [ $(stat -c %b out.img) -le ${(3 * MIB) / 512} ]`,
  )
  await thinfs('create', folder, 'on', '--external-origin', image('golden.raw'))
  await thinfs('export', folder, 'on', image('on.qcow2'))
  t.match(await run('qemu-img', 'compare', image('on.qcow2'), image('golden.raw')), /identical/)

  // Through pipes, as dd and zfs send: raw alone, which needs no way back.
  await sh(
    plain,
    `thinfs() { ${process.execPath} ${PROGRAM} "$@"; }
    head -c 1000 /dev/urandom | cat golden.raw - > odd.raw
    cat odd.raw | thinfs import ${folder} - piped
    cmp -n $(stat -c %s odd.raw) odd.raw ${path}/piped
    thinfs export ${folder} piped - | cmp - ${path}/piped
    ! thinfs export ${folder} piped - --format qcow2 2> refused
    ! thinfs import ${folder} - other < top.qcow2 2>> refused
    ! thinfs import ${folder} - other < /dev/null 2>> refused
    thinfs import ${folder} - other --format raw < top.qcow2
    cmp -n $(stat -c %s top.qcow2) top.qcow2 ${path}/other`,
  )
  t.match(
    await sh(plain, 'cat refused'),
    /^thinfs: .*takes raw.*\nthinfs: .* an image in qcow2: .*\nthinfs: standard input is empty/,
  )
  const piped = JSON.parse(await thinfs('list', folder, 'piped', '--json'))
  t.match(piped, [{ size: 20 * MIB + 1024, mapped: 3 * MIB + 64 * 1024 }], 'holes stay holes')
  await thinfs('remove', folder, 'piped', 'other', '--yes')
  for (const [args, line] of [
    [['import', folder, image('top.qcow2'), 'web'], /^thinfs: web@golden: .*VOLUME_EXISTS/],
    [['import', folder, image('none'), 'x'], /qemu-img: .*none.*TOOL_FAILED/],
    [['export', folder, 'web', image('out.img')], /out.img is there already .*BAD_ARGUMENT/],
    [['export', folder, 'none', image('x')], /VOLUME_MISSING/],
    [['export', folder, 'web', image('x'), '--format', 'none'], /qemu-img: .*none.*TOOL_FAILED/],
  ] as const) {
    t.match((await attemptThinfs(...args)).stderr, line)
  }
  await sh(
    plain,
    `for file in a:b.img -x.img; do
      ${process.execPath} ${PROGRAM} export ${folder} web@golden -- $file
      cmp ${path}/web@golden ./$file
    done`,
  )
  // What somebody has where an image is made is neither overwritten nor followed.
  await sh(plain, 'echo precious > file; ln -s file x.img.part; ln -s nowhere y.img')
  const part = await attemptThinfs('export', folder, 'web', image('x.img'))
  t.match(part, { status: 1, stderr: /x.img.part is there already; .*BAD_ARGUMENT/ })
  t.match(await attemptThinfs('export', folder, 'web', image('y.img')), { status: 1 })
  t.equal(await sh(plain, 'cat file; readlink x.img.part'), 'precious\nfile')
  for (const name of ['nowhere', 'x.img', 'y.img.part']) t.notOk(existsSync(image(name)), name)
  // An image that leads elsewhere for its content, or to a device.
  await sh(
    plain,
    `qemu-img create -q -f qcow2 -o data_file=data.raw,data_file_raw=on leads.qcow2 1M
    qemu-img create -q -u -f qcow2 -b /dev/zero -F raw device.qcow2 1M`,
  )
  for (const [name, line] of [
    ['leads.qcow2', /its content is in another file, .*data.raw.*BAD_ARGUMENT/],
    ['device.qcow2', /TOOL_FAILED|an overlay of \/dev\/zero, which is no file/],
  ] as const) {
    t.match((await attemptThinfs('import', folder, image(name), 'x')).stderr, line)
  }
  // A guest's disk that passes for an overlay.
  await thinfs('import', folder, image('top.qcow2'), 'bytes', '--format', 'raw')
  await sh(plain, `cmp -n $(stat -c %s top.qcow2) top.qcow2 ${path}/bytes`)
  await sh(plain, 'mv golden.raw gone.raw')
  t.match((await attemptThinfs('import', folder, image('top.qcow2'), 'x')).stderr, /golden.raw/)
  t.equal(existsSync(image('x')) || existsSync(image('x.part')), false, 'nothing is left')
  const names = (await pool.sh('ls -A')).split('\n')
  t.strictSame(names, ['bytes', 'on', 'web', 'web@golden', 'web@mid'])
  await pool.umount()
  const unmounted = await attemptThinfs('import', folder, image('mid.qcow2'), 'x')
  t.match(unmounted, { status: 1, stderr: /NOT_MOUNTED/ })
  await pool.close(t)
})
