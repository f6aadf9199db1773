// Goal: processes of thinfs that do not understand each other say so, in a line that says what to
// do, and nothing is done to the mount. Method: each end of the protocol against one that says that
// it is of another version, or nothing at all, as those from before there was one.
import { fork } from 'node:child_process'
import { once } from 'node:events'
import { mkdirSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import t, { type Test } from 'tap'
import type { MessageConnection } from 'vscode-jsonrpc/node'
import type { PoolConfig } from '../../src/config/index.js'
import {
  adminOf,
  ControlSocket,
  connectDaemon,
  controlSocketPath,
  HAND_OVER,
  PING,
  PROTOCOL,
  RESTART,
  STOP,
  serveAdmin,
  UMOUNT,
} from '../../src/control/index.js'
import { takeOver } from '../../src/daemon/take-over.js'

/** Nobody's: pids end below it. */
const NO_PID = 2 ** 22 + 1
const MOUNT_POINT = '/mnt/thin'

/** A process of version `protocol` that answers in the place of a pool's, and what it was asked. */
async function answering(t: Test, protocol: number | undefined) {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
  const asked: string[] = []
  const done = (what: string) => () => {
    asked.push(what)
    return null
  }
  const version = protocol === undefined ? {} : { protocol }
  const serve = (connection: MessageConnection): void => {
    connection.onRequest(PING, () => ({ pid: NO_PID, mountPoint: MOUNT_POINT, ...version }))
    connection.onRequest(UMOUNT, done('umount'))
    connection.onRequest(RESTART, done('restart'))
    connection.onRequest(HAND_OVER, () => {
      asked.push('hand over')
      return { mountPoint: MOUNT_POINT, mountOptions: [], ...version } as never
    })
    connection.onNotification(STOP, () => void done('stop')())
    serveAdmin(
      connection,
      adminOf(async method => done(method)()),
    )
  }
  const control = await ControlSocket.listen(controlSocketPath(folder), serve)
  t.teardown(async () => {
    control.close()
    await control.closed
    rmSync(folder, { recursive: true, force: true })
  })
  const place = { file: join(folder, 'pool.yaml'), folder }
  return { asked, place }
}

async function connected(t: Test, protocol: number | undefined) {
  const { asked, place } = await answering(t, protocol)
  const client = (await connectDaemon(place))!
  t.teardown(() => client.close())
  return { asked, client }
}

for (const [age, protocol] of [
  ['an older', PROTOCOL - 1],
  ['a newer', PROTOCOL + 1],
] as const) {
  const detail = new RegExp(
    `^the .* ${MOUNT_POINT} is of ${age} thinfs, .* ${protocol} .* not ${PROTOCOL}: thinfs umount .*mount$`,
  )
  const mismatch = { code: 'VERSION_MISMATCH', errno: 'EPROTO', message: detail }

  t.test(`a daemon of ${age} thinfs is asked nothing but to unmount`, async t => {
    const { asked, client } = await connected(t, protocol)
    await t.rejects(client.list({}), mismatch)
    await t.rejects(client.remove({ names: ['web'] }), mismatch)
    await t.rejects(client.restart(), mismatch)
    t.same(asked, [])
    t.same(await client.ping(), { pid: NO_PID, mountPoint: MOUNT_POINT, stays: null })
    await client.umount()
    t.same(asked, ['umount'])
  })

  t.test(`a daemon does not take over from an engine of ${age} thinfs, which goes on`, async t => {
    const { asked, place } = await answering(t, protocol)
    await t.rejects(takeOver(place as PoolConfig, MOUNT_POINT, []), mismatch)
    t.same(asked, ['hand over'])
  })
}

t.test('a daemon from before there was a version is of the first one', async t => {
  const { asked, client } = await connected(t, undefined)
  t.equal(PROTOCOL, 2, 'or else say what of that version is understood')
  await t.rejects(client.list({}), { code: 'VERSION_MISMATCH', message: / version 1 / })
  await client.umount()
  t.same(asked, ['umount'])
})

for (const [program, start] of [
  ['main', { mountPoint: MOUNT_POINT, config: {}, mountOptions: [], negotiated: null }],
  ['tables-main', { negotiated: null }],
] as const) {
  t.test(`an engine (${program}) does not serve under a process of another version`, async t => {
    const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
    t.teardown(() => rmSync(folder, { recursive: true, force: true }))
    mkdirSync(join(folder, 'pools'))
    const log = { logLevel: 'silent', logFile: null, foreground: false }
    const child = fork(
      new URL(`../../src/engine/${program}.ts`, import.meta.url),
      [JSON.stringify({ ...start, ...log, folder, protocol: PROTOCOL + 1 })],
      { execArgv: ['--import=tsx'], stdio: ['ignore', 'ignore', 'inherit', 'ipc'] },
    )
    const messages: { method: string; params?: { code: string; message: string } }[] = []
    child.on('message', message => messages.push(message as (typeof messages)[number]))
    const [status] = await once(child, 'close')
    t.equal(status, 1)
    t.match(
      messages.find(({ method }) => method === 'failed'),
      { params: { code: 'VERSION_MISMATCH', message: /is of a newer thinfs/ } },
    )
  })
}
