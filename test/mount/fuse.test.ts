// Goal: the kernel and ordinary programs find a file system that behaves as one. Method: a folder
// of the host is mounted through the session, served by another process, and used by programs that
// do not come from us; what they leave is compared with the folder behind.
import { execFile } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import t from 'tap'
import { DEV } from '../../src/fuse/index.js'
import { transportContract } from '../contract/transport.js'
import { FolderMount } from '../support/folder-mount.js'
import { needs } from '../support/mounted-pool.js'

const MIB = 1024 * 1024
const execute = promisify(execFile)

const run = async (program: string, ...args: string[]): Promise<string> =>
  (await execute(program, args, { encoding: 'utf8', timeout: 60_000 })).stdout.trim()
const sh = (script: string, cwd: string): Promise<string> =>
  execute('sh', ['-euc', script], { cwd, encoding: 'utf8', timeout: 60_000 }).then(
    ({ stdout }) => stdout.trim(),
    err => `failed: ${(err as { stderr: string }).stderr.trim()}`,
  )

const MOUNT_OPTIONS = { source: 'a', subtype: 'thinfs', allowOther: false, readOnly: false }

transportContract(DEV, needs('/dev/fuse'))

t.test('mount options and what the kernel agreed to', async t => {
  const mount = await FolderMount.make(t, DEV)
  const info = readFileSync('/proc/self/mountinfo', 'utf8')
  const line = info.split('\n').find(l => l.includes(mount.path)) ?? ''
  t.match(line, / - fuse\.thinfs thinfs,a\\134b rw,user_id=0,group_id=0,default_permissions/)
  t.match(line, /nosuid,nodev/)
  t.match(mount.negotiated, { maxWrite: MIB })

  const readOnly = await FolderMount.make(t, DEV, { readOnly: true })
  writeFileSync(join(readOnly.folder, 'a'), 'text')
  t.match(await sh('echo x > a', readOnly.path), /Read-only file system/)
  t.equal(await sh('cat a', readOnly.path), 'text')

  await t.rejects(DEV.mount('/dev/shm/none', MOUNT_OPTIONS), {
    code: 'MOUNT_FAILED',
    errno: 'ENOENT',
    message: /^\/dev\/shm\/none: ENOENT/,
  })
})

t.test('programs see the folder that is behind', async t => {
  const { path, folder } = await FolderMount.make(t, DEV)
  const both = async (script: string): Promise<void> => {
    t.equal(await sh(script, path), await sh(script, folder), script)
  }
  t.equal(await sh('dd if=/dev/urandom of=a bs=1M count=20 status=none', path), '')
  t.equal(await sh(`cmp ${path}/a ${folder}/a`, '/'), '')
  await both('stat -c "%s %b %f %h %Y" a')
  await both('ls -ls')
  await sh('fallocate -p -o 65536 -l 1048576 a', path)
  await both('stat -c "%s %b" a')
  t.equal(await sh(`cmp ${path}/a ${folder}/a`, '/'), '')
  await sh('fallocate -z -o 4194304 -l 65536 a; fallocate -l 30M a', path)
  await both('sha256sum a; stat -c "%s %b" a')
  await sh('truncate -s 40M a; truncate -s 10M b; cp --sparse=always a c; mv c d; rm b', path)
  await both('ls -a; sha256sum *')
  await both('cp --sparse=auto a e; stat -c "%s %b" e; rm e')
  t.equal(await sh('echo short > a; cat a', path), 'short', 'a truncating open')
  await both('wc -c < a')

  t.match(await sh('mkdir dir', path), /Operation not permitted/)
  t.match(await sh('ln -s a b', path), /Operation not permitted/)
  t.match(await sh('ln a b', path), /Operation not permitted/)
  t.match(await sh('mkfifo b', path), /Operation not permitted/)
  t.match(await sh('cat none', path), /No such file or directory/)
  t.equal(
    await sh('getfattr --only-values -n user.thinfs.ino a', path),
    await sh('stat -c %i a', folder),
  )
  t.match(await sh('getfattr -n user.none a', path), /No such attribute/)
  t.match(await sh('setfattr -n user.a -v 1 a', path), /Operation not supported/)
  t.equal(await sh('stat -f -c "%S %s %b %f" .', path), '65536 65536 4096 1024')
  t.match(await sh('touch $(printf "\\377")', path), /Invalid argument/)
})

t.test('a thousand files are listed, while others come and go', async t => {
  const { path, folder } = await FolderMount.make(t, DEV)
  await sh(
    'for i in $(seq 1000); do : > "file with a long name so that pages are many $i"; done',
    folder,
  )
  t.equal(await sh('ls -U | wc -l; ls -lU | wc -l', path), '1000\n1001')
  const script = `
import os
with os.scandir('.') as entries:
    found = [next(entries).name]
    os.unlink('file with a long name so that pages are many 1000')
    open('new', 'w').close()
    found += [entry.name for entry in entries]
print(len(found) - ('new' in found) - ('file with a long name so that pages are many 1000' in found))
print(len(set(found)) == len(found))`
  t.equal(await run('env', '-C', path, 'python3', '-c', script), '999\nTrue')
})

t.test('fio finds what it wrote, direct and buffered', async t => {
  const { path } = await FolderMount.make(t, DEV)
  await sh('truncate -s 64M v', path)
  const fio = (...args: string[]): Promise<string> =>
    sh(
      `fio --name=v --filename=v --size=64M --verify=crc32c --verify_fatal=1 --randseed=1 ${args.join(' ')}`,
      path,
    )
  for (const args of [
    ['--rw=randwrite', '--bs=4k', '--direct=1', '--ioengine=libaio', '--iodepth=16'],
    [
      '--rw=randrw',
      '--bsrange=512-1M',
      '--blockalign=512',
      '--direct=1',
      '--ioengine=libaio',
      '--iodepth=16',
    ],
    ['--rw=randwrite', '--bsrange=512-300k', '--blockalign=512', '--ioengine=psync', '--fsync=64'],
    ['--rw=randwrite', '--bs=4k', '--ioengine=mmap'],
  ]) {
    t.match(await fio(...args), /err= 0/, args.join(' '))
  }
})

t.test('a loop device: direct I/O, discards, resize', async t => {
  const { path, folder } = await FolderMount.make(t, DEV)
  await sh('truncate -s 64M v', path)
  const loop = await run('losetup', '--find', '--show', '--direct-io=on', join(path, 'v'))
  t.teardown(() => run('losetup', '--detach', loop))
  const name = loop.slice('/dev/'.length)
  const queue = (field: string): string =>
    readFileSync(`/sys/block/${name}/queue/${field}`, 'utf8').trim()
  t.equal(await run('losetup', '--noheadings', '--output', 'DIO', loop), '1')
  t.equal(queue('discard_granularity'), '65536', 'the block size of statfs')
  const fio = `fio --name=v --filename=${loop} --size=64M --rw=randwrite --bs=64k --direct=1 --ioengine=libaio --iodepth=16 --verify=crc32c --verify_fatal=1`
  t.match(await sh(fio, '/'), /err= 0/)
  t.equal(await sh('stat -c %b v', folder), String((64 * MIB) / 512))
  t.equal(await sh(`blkdiscard --offset 0 --length 32M ${loop}`, '/'), '')
  t.equal(await sh('stat -c %b v', folder), String((32 * MIB) / 512))
  t.equal(
    await sh(`blkdiscard --zeroout --offset 40M --length 1M ${loop}; cmp ${loop} v`, path),
    '',
  )
  await sh('truncate -s 128M v', path)
  await run('losetup', '--set-capacity', loop)
  t.equal(await run('blockdev', '--getsize64', loop), String(128 * MIB))
})

t.test('fusermount3 mounts for users other than root', async t => {
  // It is asked as if by a user; it answers root too, so that this runs where /dev/fuse is root's.
  const getuid = process.getuid!
  process.getuid = () => 1000
  t.teardown(() => {
    process.getuid = getuid
  })
  const { path, folder } = await FolderMount.make(t, DEV)
  const info = readFileSync('/proc/self/mountinfo', 'utf8')
  const line = info.split('\n').find(l => l.includes(path)) ?? ''
  t.match(line, / - fuse\.thinfs thinfs,a\\134b rw,.*default_permissions/)
  writeFileSync(join(folder, 'a'), 'text')
  t.equal(await sh('cat a', path), 'text')
  await t.rejects(DEV.mount('/dev/shm/none', MOUNT_OPTIONS), {
    code: 'MOUNT_FAILED',
    message: /^\/dev\/shm\/none: .*No such file or directory/,
  })
})
