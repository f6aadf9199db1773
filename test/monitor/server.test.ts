// Goal: the page and the metrics are read by this machine's programs and by nobody else, and
// nothing can be changed there; Prometheus takes the metrics as good. Method: a pool that says what
// the test wants, requests as a browser and as Prometheus send them, and promtool.
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { mkdtempSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { request } from 'node:http'
import { createServer } from 'node:net'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { text } from 'node:stream/consumers'
import t, { type Test } from 'tap'
import { IoCounters, OPERATION } from '../../src/base/index.js'
import {
  type Listen,
  listenOf,
  Monitor,
  metricsText,
  newToken,
  tokenIn,
} from '../../src/monitor/index.js'
import type { WatchedPool } from '../../src/monitor/watch.js'
import type { PoolStatistics } from '../../src/volumes/index.js'

/** Statistics of a pool with two volumes; reads take 3 ms. */
function statistics(reads: number): PoolStatistics {
  const counters = new IoCounters()
  for (let i = 0; i < reads; i++) counters.count(OPERATION.read, 4096, 3)
  counters.count(OPERATION.write, 65_536, 0.05)
  counters.count(OPERATION.flush, 0, 20)
  const io = counters.counts
  const volume = { size: 2 ** 30, mapped: 2 ** 20, open: true }
  return {
    name: 'tank',
    mode: 'write',
    time: Date.now(),
    since: 1_700_000_000,
    engineRestarts: 2,
    dataBlockSize: 65_536,
    data: { blocks: 1000, usedBlocks: 250, hostFree: 2 ** 40 },
    metadata: { blocks: 1024, usedBlocks: 30, hostFree: null },
    lowWaterMarkBlocks: 10,
    metadataLowWaterMarkBlocks: 256,
    writesWaiting: 0,
    io,
    cache: {
      ...{ hits: 900, misses: 100, aheadUsedBytes: 2 ** 20, aheadWastedBytes: 4096 },
      ...{ sentBytes: 2 ** 24, sentRequests: 64, flushes: 9, reconnects: 1 },
      ...{ dirtyBytes: 65_536, dirtyLimit: 2 ** 26, drainBytesPerSecond: 8e7, writersWaiting: 2 },
    },
    work: { commits: 5, commitMs: 12.5, punches: 3, punchedBytes: 196_608, spaceWaits: 1 },
    volumes: [
      { name: 'a "quoted" one', devId: 1, ...volume, io: null },
      { name: 'web', devId: 0, ...volume, io },
    ],
  }
}

/** A daemon that answers; null: the pool is not mounted. */
function fakePool(): WatchedPool {
  let close = (): void => {}
  const closed = new Promise<never>((_, reject) => {
    close = () => reject(new Error('the connection is closed'))
  })
  closed.catch(() => {})
  const happened = { id: 7, time: 1, event: 'mode', detail: '', mode: 'write' }
  let reads = 100
  return {
    statistics: async () => statistics(reads++),
    status: async () => ({ name: 'tank', mode: 'write', reason: null }) as never,
    list: async () => [],
    blockMap: async ({ cells }) =>
      ({ dataBlockSize: 65_536, blocks: cells, used: [], volumes: [] }) as never,
    events: ({ after }) =>
      after === 0 ? Promise.resolve({ events: [happened], last: 7, ended: false }) : closed,
    close,
  }
}

async function started(
  t: Test,
  listen: Listen,
  connect = async () => fakePool(),
  token: string | null = null,
) {
  const monitor = await Monitor.start({ pool: '/srv/p/pool.yaml', listen, token, connect })
  t.teardown(() => monitor.close())
  return monitor
}

interface Answer {
  status: number
  headers: Record<string, unknown>
  body: string
}

/** One request to a monitor. */
async function ask(monitor: Monitor, path: string, options: object = {}): Promise<Answer> {
  const { address } = monitor
  const where = address.startsWith('unix:')
    ? { socketPath: address.slice('unix:'.length) }
    : { host: '127.0.0.1', port: new URL(address).port }
  const asked = request({ ...where, path, ...options })
  asked.end()
  const [response] = await once(asked, 'response')
  return { status: response.statusCode, headers: response.headers, body: await text(response) }
}

t.test('where it listens: on this machine alone', async t => {
  t.strictSame(listenOf('127.0.0.1:9713'), { host: '127.0.0.1', port: 9713 })
  t.strictSame(listenOf('[::1]:80'), { host: '::1', port: 80 })
  t.strictSame(listenOf('localhost:0'), { host: 'localhost', port: 0 })
  t.strictSame(listenOf('unix:/run/x.sock'), { path: '/run/x.sock' })
  for (const text of ['0.0.0.0:80', '[::]:80', '192.168.1.1:80', '127.0.0.1.evil.example:80']) {
    t.throws(() => listenOf(text), { code: 'BAD_ARGUMENT', message: /anybody could read/ }, text)
  }
  const long = `unix:/${'x'.repeat(107)}`
  t.throws(() => listenOf(long), { code: 'BAD_ARGUMENT', message: /107 bytes at most/ })
  for (const text of ['9713', '127.0.0.1', '127.0.0.1:99999', 'unix:', '']) {
    t.throws(
      () => listenOf(text),
      { code: 'BAD_ARGUMENT', message: /HOST:PORT or unix:PATH/ },
      text,
    )
  }
})

t.test('a browser gets what is its own, and can change nothing', async t => {
  const monitor = await started(t, listenOf('127.0.0.1:0'))
  const page = await ask(monitor, '/')
  t.match(page, { status: 200, body: /<!doctype html>/ })
  t.match(page.headers, {
    'content-type': 'text/html; charset=utf-8',
    'content-security-policy': /default-src 'none'; script-src 'self'; style-src 'self';/,
    'x-content-type-options': 'nosniff',
  })
  t.notMatch(page.body, /<script>| style="| on[a-z]+="/, 'nothing that the policy would refuse')
  t.equal(page.headers['access-control-allow-origin'], undefined)
  for (const [path, type] of [
    ['/page.js', 'text/javascript; charset=utf-8'],
    ['/page.css', 'text/css; charset=utf-8'],
    ['/api/state', 'application/json'],
    ['/api/map', 'application/json'],
  ]) {
    t.match(await ask(monitor, path!), { status: 200, headers: { 'content-type': type } }, path)
  }
  t.match(JSON.parse((await ask(monitor, '/api/state')).body), {
    pool: '/srv/p/pool.yaml',
    status: { name: 'tank' },
    events: [{ event: 'mode' }],
  })
  t.match(await ask(monitor, '/../../etc/passwd'), { status: 404 })
  t.match(await ask(monitor, '/constructor'), { status: 404 })
  for (const method of ['POST', 'PUT', 'DELETE', 'OPTIONS']) {
    t.match(await ask(monitor, '/api/state', { method }), { status: 405 }, method)
  }
  for (const host of ['evil.example', 'evil.example:80', '127.0.0.1.evil.example']) {
    t.match(await ask(monitor, '/api/state', { headers: { host } }), { status: 421 }, host)
  }
  for (const host of ['localhost:1234', '[::1]:80', '127.0.0.1']) {
    t.match(await ask(monitor, '/api/state', { headers: { host } }), { status: 200 }, host)
  }
})

t.test('on an address, whoever does not know the token learns nothing of the pool', async t => {
  const token = newToken()
  const monitor = await started(t, listenOf('127.0.0.1:0'), undefined, token)
  t.equal(new URL(monitor.address).hash, `#token=${token}`)
  t.match(await ask(monitor, '/'), { status: 200 }, 'the page is the same for every pool')
  for (const path of ['/api/state', '/api/map', '/api/live', '/metrics']) {
    const refused = { status: 401, headers: { 'www-authenticate': 'Bearer' }, body: /address/ }
    t.match(await ask(monitor, path), refused, path)
    const wrong = { headers: { authorization: `Bearer ${newToken()}` } }
    t.match(await ask(monitor, path, wrong), refused, path)
    t.match(await ask(monitor, `${path}?token=${token.slice(1)}`), refused, path)
  }
  const known = { headers: { authorization: `Bearer ${token}` } }
  t.match(await ask(monitor, '/metrics', known), { status: 200 }, 'as Prometheus sends it')
  t.match(await ask(monitor, `/api/state?token=${token}`), { status: 200 })
  const folder = t.testdir({ short: 'secret', own: 'a-token-of-ones-own\n' })
  const made = tokenIn(join(folder, 'made'))
  t.equal(statSync(join(folder, 'made')).mode & 0o777, 0o600)
  t.equal(tokenIn(join(folder, 'made')), made)
  t.equal(tokenIn(join(folder, 'own')), 'a-token-of-ones-own')
  t.throws(() => tokenIn(join(folder, 'short')), { code: 'BAD_ARGUMENT', message: /at least 16/ })
  t.throws(() => tokenIn(folder), { code: 'IO_ERROR' })
})

t.test('a page that is open hears of rates and events', async t => {
  const monitor = await started(t, listenOf('127.0.0.1:0'))
  const asked = request(`${monitor.address}api/live`)
  asked.end()
  const [response] = await once(asked, 'response')
  t.equal(response.headers['content-type'], 'text/event-stream')
  let heard = ''
  for await (const chunk of response) {
    heard += chunk
    if ((heard.match(/^event: rates$/gm) ?? []).length >= 2) break
  }
  const [, last] = [...heard.matchAll(/^event: rates\ndata: (.*)$/gm)].map(([, data]) => data)
  const { io, used } = JSON.parse(last!)
  t.equal(used, 250 * 65_536)
  t.ok(io.read.perSecond > 0)
  t.ok(io.read.p99Ms > 2 && io.read.p99Ms <= 4, 'each took 3 ms')
})

t.test("a socket is its owner's; one that is left over is replaced, one in use is not", async t => {
  const folder = mkdtempSync(join(tmpdir(), 'thinfs-'))
  t.teardown(() => rmSync(folder, { recursive: true }))
  const path = join(folder, 'm.sock')
  const server = createServer().listen(path)
  await once(server, 'listening')
  await t.rejects(started(t, { path }), { code: 'IO_ERROR', message: /somebody listens there/ })
  server.close()
  await once(server, 'close')
  // What a killed process leaves.
  const left = spawn(process.execPath, [
    '-e',
    `require('net').createServer().listen(${JSON.stringify(path)}, () => process.kill(process.pid, 'SIGKILL'))`,
  ])
  await once(left, 'close')
  t.ok(statSync(path).isSocket())
  const monitor = await started(t, { path })
  t.equal(statSync(path).mode & 0o777, 0o600)
  t.match(await ask(monitor, '/metrics'), { status: 200, body: /^thinfs_up\{pool=".*"\} 1$/m })
  const file = join(folder, 'file')
  writeFileSync(file, 'kept')
  await t.rejects(started(t, { path: file }), { code: 'IO_ERROR', message: /file: is no socket/ })
  t.equal(readFileSync(file, 'utf8'), 'kept')
})

t.test('a pool that is not mounted is no failure', async t => {
  const monitor = await started(t, listenOf('127.0.0.1:0'), async () => null as never)
  const { status, body } = await ask(monitor, '/metrics')
  t.equal(status, 200)
  t.match(body, /^thinfs_up\{pool="\/srv\/p\/pool\.yaml"\} 0$/m)
  t.notMatch(body, 'thinfs_pool')
  t.match(JSON.parse((await ask(monitor, '/api/state')).body), { status: null, volumes: [] })
  t.equal((await ask(monitor, '/api/map')).body, 'null')
})

t.test('a pool that has failed, or was lost: its mode, and no counters', async t => {
  const lost: WatchedPool = {
    ...fakePool(),
    statistics: () => Promise.reject(new Error('taken over by b')),
    status: async () => ({ name: 'tank', mode: 'fail', reason: 'taken over by b' }) as never,
  }
  const monitor = await started(t, listenOf('127.0.0.1:0'), async () => lost)
  const { status, body } = await ask(monitor, '/metrics')
  t.equal(status, 200)
  t.match(body, /^thinfs_up\{pool="\/srv\/p\/pool\.yaml"\} 1$/m)
  t.match(body, /^thinfs_pool_mode\{.*mode="fail"\} 1$/m)
  t.match(body, /^thinfs_pool_mode\{.*mode="write"\} 0$/m)
  t.notMatch(body, 'thinfs_pool_data')
  await promtool(t, body, 'check', 'metrics')
})

/** The output of promtool; it has to succeed, and to find nothing odd. */
async function promtool(t: Test, input: string, ...args: string[]): Promise<void> {
  const child = spawn('promtool', args)
  child.stdin.end(input)
  const [said, complaints, [status]] = await Promise.all([
    text(child.stdout),
    text(child.stderr),
    once(child, 'close'),
  ])
  t.equal(status, 0, `${said}${complaints}`)
  t.equal(complaints, '', said)
}

t.test('Prometheus has nothing to say against the metrics', async t => {
  const metrics = await metricsText('/srv/p/pool.yaml', statistics(1000))
  await promtool(t, metrics, 'check', 'metrics')
  const lines = metrics.split('\n')
  const one = (name: string): string => {
    const found = lines.filter(line => line.startsWith(`${name} `))
    t.equal(found.length, 1, name)
    return found[0]!.split(' ').at(-1)!
  }
  const read = 'pool="/srv/p/pool.yaml",operation="read"'
  const bucket = (le: string): number =>
    Number(one(`thinfs_pool_request_duration_seconds_bucket{${read},le="${le}"}`))
  t.equal(bucket('0.002048'), 0)
  t.equal(bucket('0.004096'), 1000)
  t.equal(bucket('+Inf'), 1000)
  t.equal(one(`thinfs_pool_request_duration_seconds_sum{${read}}`), '3')
  t.equal(one(`thinfs_pool_request_bytes_total{${read}}`), String(1000 * 4096))
  const volume = 'pool="/srv/p/pool.yaml",volume="a \\"quoted\\" one"'
  t.equal(one(`thinfs_volume_mapped_bytes{${volume}}`), String(2 ** 20))
})

t.test('the rules of examples/ are rules, and ask for metrics that there are', async t => {
  await promtool(t, '', 'check', 'rules', 'examples/prometheus-rules.yml')
  const metrics = await metricsText('/p', statistics(1))
  const names = new Set([...metrics.matchAll(/^(thinfs_\w+)/gm)].map(([, name]) => name!))
  for (const file of ['examples/prometheus-rules.yml', 'examples/grafana-dashboard.json']) {
    const text = readFileSync(file, 'utf8')
    const asked = new Set(
      [...text.matchAll(/\bthinfs_(?:up|pool_\w+|volume_\w+)\b/g)].map(([name]) => name),
    )
    t.ok(asked.size > 3, file)
    for (const name of asked) t.ok(names.has(name), `${file}: ${name}`)
  }
})
