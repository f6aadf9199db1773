import { once } from 'node:events'
import { ThinfsError } from '../base/index.js'
import type { PoolPlace } from '../config/index.js'
import { connectDaemon } from '../control/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool } from './pool.js'

interface Options extends Output {
  listen: string
  tokenFile?: string
  token: boolean
}

export const serve = command(
  'serve',
  'Serve a page about a pool, and /metrics for Prometheus, to this machine, until Ctrl-C.',
  'thinfs serve /mnt/thin --listen 127.0.0.1:9713',
)
  .argument('<POOL>', POOL_HELP)
  .option(
    '--listen <WHERE>',
    'a loopback address with a port, or unix:PATH for a socket of its owner alone',
    '127.0.0.1:9713',
  )
  .option('--token-file <file>', 'the token that a request needs; made where it is not there')
  .option('--no-token', 'let every user of this machine read it')
  .addHelpText(
    'after',
    `
Everything can be read there and nothing changed. On an address, whoever asks has to know a token: the
address that is printed has a new one, and opens the page; a file keeps it, for Prometheus. A socket
is its owner's, and needs none. It is a process of its own, which the mount does not
need; it goes on while the pool is not mounted. docs/MONITORING.md has the rest.`,
  )
  .action(async (pool: string, options: Options) => {
    const { listen, tokenFile, token: wantsToken, ...output } = options
    const place = placeOfPool(pool)
    await mustBeServable(place)
    const { listenOf, Monitor, newToken, tokenIn } = await import('../monitor/index.js')
    const where = listenOf(listen)
    const isFree = 'path' in where || !wantsToken
    if (isFree && tokenFile !== undefined) {
      const what = "--token-file is for an address; a socket is its owner's, --no-token everybody's"
      throw new ThinfsError('BAD_ARGUMENT', what)
    }
    const token = isFree ? null : tokenFile === undefined ? newToken() : tokenIn(tokenFile)
    const monitor = await Monitor.start({
      pool: place.file,
      listen: where,
      token,
      connect: () => connectDaemon(place),
    })
    const { address } = monitor
    print(output, { address, pool: place.file, token }, address)
    const ended = new AbortController()
    const { signal } = ended
    await Promise.race(['SIGINT', 'SIGTERM'].map(name => once(process, name, { signal })))
    ended.abort()
    await monitor.close()
  })

/**
 * A pool that is not mounted, or whose engine fails, may be better later.
 * @throws NOT_TRUSTED, VERSION_MISMATCH for what stays as it is
 */
async function mustBeServable(place: PoolPlace): Promise<void> {
  const daemon = await connectDaemon(place)
  try {
    await daemon?.statistics()
  } catch (err) {
    if (err instanceof ThinfsError && err.code === 'VERSION_MISMATCH') throw err
  } finally {
    daemon?.close()
  }
}
