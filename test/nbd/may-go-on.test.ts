// Goal: nothing is sent again to a disk that somebody else has had meanwhile. Method: a server that
// ends the first connection at the first write, and notes what comes by the next.
import t, { type Test } from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import { NbdDisk, type NbdOptions } from '../../src/nbd/index.js'
import { chunk, fakeServer } from '../support/nbd-servers.js'

const [READ, WRITE] = [0, 1]

/**
 * A disk whose connection breaks at its first write; the commands of the connections, by number.
 */
async function broken(t: Test, mayGoOn: NonNullable<NbdOptions['mayGoOn']>) {
  const commands: number[][] = [[], [], [], []]
  const address = await fakeServer(t, {
    request({ command, cookie, length }, socket, connection) {
      commands[connection]!.push(command)
      if (connection === 0) return void socket.destroy()
      const data = Buffer.concat([Buffer.alloc(8), Buffer.alloc(length, 7)])
      socket.write(
        command === READ ? chunk(cookie, 1, 1, data) : chunk(cookie, 1, 0, Buffer.alloc(0)),
      )
    },
  })
  const disk = await NbdDisk.connect(address, { mayGoOn })
  t.teardown(() => disk.close())
  /** Those by which something came. */
  const came = (): number[][] => commands.filter(({ length }) => length > 0)
  return { disk, came }
}

t.test('it may: the question comes first, then what has no answer', async t => {
  const block = new Uint8Array(4096)
  const { disk, came } = await broken(t, read => read(block, 0))
  await disk.write(new Uint8Array(4096), 8192)
  t.same(came(), [[WRITE], [READ, WRITE]])
  t.ok(block.every(byte => byte === 7))
  t.equal(disk.epoch, 2)
})

t.test('it may not: the disk has failed, for good', async t => {
  const { disk, came } = await broken(t, async read => {
    await read(new Uint8Array(4096), 0)
    throw new ThinfsError('FENCED', 'taken over by host7')
  })
  const failed = { code: 'FENCED', message: /taken over by host7$/ }
  await t.rejects(disk.write(new Uint8Array(4096), 8192), failed)
  await t.rejects(disk.read(new Uint8Array(4096), 0), failed)
  t.same(came(), [[WRITE], [READ]])
})

t.test('nobody can tell yet: it connects once more', async t => {
  let asked = 0
  const { disk, came } = await broken(t, async read => {
    if (asked++ < 2) throw new Error('no answer')
    await read(new Uint8Array(4096), 0)
  })
  await disk.write(new Uint8Array(4096), 8192)
  t.same(came(), [[WRITE], [READ, WRITE]])
})
