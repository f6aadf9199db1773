import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import { type Transport, transportOf } from '../../src/fuse/index.js'
import { FULL, WAITING_XATTR } from '../support/folder-file-system.js'
import { FolderMount } from '../support/folder-mount.js'
import { attempt, failure, run, sh, until } from '../support/mounted-pool.js'

const FIO =
  'fio --name=v --filename=v --size=16M --ioengine=libaio --direct=1 --iodepth=16 --verify=crc32c --verify_fatal=1 --randseed=1'

/**
 * What every transport promises. Method: a folder of the host is mounted and served through it by
 * another process, and used by programs; what they find is compared with the folder behind.
 * @param options why the tests are skipped where they are, and what has to be done before them
 */
export function transportContract(
  transport: Transport,
  options: { skip?: string | boolean; before?: () => void } = {},
): void {
  const { name, capabilities } = transport
  const { skip = false, before = () => {} } = options
  const test = (what: string, body: (t: Test) => Promise<void>): void => {
    t.test(`${name}: ${what}`, { skip }, async t => {
      before()
      await body(t)
    })
  }

  test('files are those of the folder behind', async t => {
    const mount = await FolderMount.make(t, transport)
    const { path, folder } = mount
    t.equal(transportOf(mount.negotiated!).name, name)
    t.equal(mount.negotiated!.whyDev, undefined)
    await sh(
      path,
      'head -c 20M /dev/urandom > a; : > b; mv b c; printf longer > d; truncate -s 4 d',
    )
    for (const script of ['sha256sum *', 'stat -c "%n %s %b %f %h %Y" *', 'ls -a']) {
      t.equal(await sh(path, script), await sh(folder, script), script)
    }
    t.match(await failure(path, 'cat none'), /No such file or directory/)
    t.match(await failure(path, 'getfattr -n user.none a'), /No such attribute/)
    t.match(await sh(path, `truncate -s 16M v; ${FIO} --rw=randrw --bsrange=512-1M`), /err= 0/)
    t.equal(await sh('/', `cmp ${path}/v ${folder}/v`), '')

    t.same(await mount.unmount(), { said: 'unmounted', status: 0 })
    t.equal(await sh(path, 'ls'), '', 'nothing is mounted')
  })

  test('what it can do, the file system behind is asked to do', async t => {
    const mount = await FolderMount.make(t, transport)
    const { path, folder } = mount
    await sh(folder, 'head -c 3M /dev/urandom > a; truncate -s 20M a; : > b')
    const { ino } = statSync(join(folder, 'a'))
    const of = async (method: string): Promise<unknown[][]> =>
      (await mount.ask({ do: 'calls' })).filter(([name]) => name === method)

    const script = `
import os
a = os.open('a', os.O_RDWR); again = os.open('a', os.O_RDONLY); b = os.open('b', os.O_RDWR)
print(os.lseek(a, 0, os.SEEK_HOLE), os.copy_file_range(a, b, 2000000, 1000, 4096))`
    const [hole, copied] = (await run('env', '-C', path, 'python3', '-c', script)).split(' ')
    t.equal(Number(hole), capabilities.seeksHoles ? 3 << 20 : 20 << 20)
    t.equal((await of('lseek')).length, capabilities.seeksHoles ? 1 : 0)
    t.equal(Number(copied), 2_000_000)
    t.equal((await of('copyFileRange')).length, capabilities.copiesRanges ? 1 : 0)
    t.equal(await sh(folder, 'cmp -n 2000000 -i 1000:4096 a b'), '')

    if (capabilities.handles) {
      // The kernel sends a RELEASE behind the back of who closes.
      await until(async () => (await of('release')).length === 3)
      const opened = (await of('open')).map(([, ino, , fh]) => [ino, fh])
      const released = (await of('release')).map(([, ino, fh]) => [ino, fh])
      t.equal(new Set(opened.map(([, fh]) => fh)).size, 3, 'each has a number of its own')
      t.same(released.sort(), opened.sort())
    }

    const punched = await attempt('fallocate', '-p', '-l', '1M', join(path, 'a'))
    if (capabilities.discards) t.match(await of('fallocate'), [['fallocate', ino, 3, 0, 1 << 20]])
    else t.match(punched.stderr, /not supported/)
    t.equal(statSync(join(folder, 'a')).blocks * 512, (capabilities.discards ? 2 : 3) << 20)

    const c = join(folder, 'c')
    writeFileSync(c, 'one')
    t.equal(await sh(path, 'cat c'), 'one')
    writeFileSync(c, 'two', { flag: 'r+' })
    if (capabilities.notifies) {
      t.equal(await sh(path, 'cat c'), 'one', 'the kernel has it in its cache')
      await mount.ask({ do: 'invalidate', ino: statSync(c).ino })
    }
    t.equal(await sh(path, 'cat c'), 'two', 'what it cannot be told of it does not keep')
  })

  test('a request that its server does not answer', async t => {
    const mount = await FolderMount.make(t, transport)
    const { path } = mount
    await sh(mount.folder, ': > a')
    const waiting = attempt('getfattr', '--only-values', '-n', WAITING_XATTR, join(path, 'a'))
    await until(async () =>
      (await mount.ask({ do: 'calls' })).some(call => call[2] === WAITING_XATTR),
    )
    await mount.kill()
    if (!capabilities.outlivesEngine) {
      mount.letGo()
      t.equal((await waiting).status, 1, 'ends with its server')
      t.match(await failure('/', `ls ${path}`), /not connected|aborted/, 'as the mount does')
      return
    }
    await mount.serve()
    t.match(await waiting, { status: 0, stdout: 'answered' }, 'is answered by the next one')
  })

  if (capabilities.interrupts) {
    test('a request that waits for space ends when its caller is killed', async t => {
      const mount = await FolderMount.make(t, transport)
      const { path } = mount
      await sh(mount.folder, `truncate -s 1M ${FULL}`)
      const file = join(path, FULL)
      const waits = async (): Promise<number> =>
        (await mount.ask({ do: 'calls' })).filter(([name]) => name === 'wait').length
      const dd = ['dd', 'if=/dev/zero', `of=${file}`, 'bs=4k', 'count=1', 'conv=notrunc']
      const allocate = ['fallocate', '-l', '2M', file]
      for (const [i, [program, ...args]] of [dd, allocate, dd].entries()) {
        const signal = i === 0 ? 'SIGKILL' : 'SIGINT'
        const child = spawn(program!, args, { stdio: 'ignore' })
        const ended = once(child, 'exit')
        await until(async () => (await waits()) === i + 1)
        child.kill(signal)
        t.same(await ended, [null, signal], program!)
        await sh(path, `fallocate -p -o 0 -l 64K ${FULL}; echo others > other${i}; cat other${i}`)
      }
    })
  }

  if (!capabilities.outlivesEngine) return
  test('servers that are killed or stopped under load are replaced without an error', async t => {
    const mount = await FolderMount.make(t, transport)
    await sh(mount.path, 'truncate -s 64M v')
    let ended = false
    const load = sh(mount.path, `${FIO} --rw=randwrite --bs=4k --size=64M --loops=2`).finally(
      () => {
        ended = true
      },
    )
    let replaced = 0
    for (; !ended && replaced < 4; replaced++) {
      await (replaced % 2 === 0 ? mount.kill() : mount.stop())
      await mount.serve()
    }
    t.match(await load, /err= 0/)
    t.ok(replaced > 0, `replaced ${replaced} times`)
  })
}
