// Goal: errors of a disk that fails do not fill the log, and a request's error is its caller's
// business unless it tells of damage. Method: a logger that keeps its lines.
import t from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import { PoolLog } from '../../src/engine/pool-log.js'
import type { Logger } from '../../src/log/index.js'

function logged(): { lines: [level: string, ...unknown[]][]; log: PoolLog } {
  const lines: [level: string, ...unknown[]][] = []
  const at =
    (level: string) =>
    (...what: unknown[]): void =>
      void lines.push([level, ...what])
  const logger = { warn: at('warn'), error: at('error'), info: at('info'), debug: at('debug') }
  return { lines, log: new PoolLog(logger as unknown as Logger, devId => `volume ${devId}`) }
}

t.test('errors of one kind are logged some times', async t => {
  const { lines, log } = logged()
  const err = new Error('EIO')
  for (let i = 0; i < 25; i++) log.events.ioError('write', err, { devId: 3 as never, block: i })
  t.equal(lines.length, 10)
  t.same(lines[9], [
    'error',
    { operation: 'write', volume: 'volume 3', block: 9, err },
    'I/O error',
  ])
  log.events.ioError('flush', err)
  t.equal(lines.length, 10, 'the cause of all is most likely one')
  log.events.mode('read_only', 'flush: EIO')
  t.same(lines[10]?.slice(0, 2), ['warn', { mode: 'read_only', reason: 'flush: EIO' }])
})

t.test('a failed request is a line for those who look closely, damage one for all', async t => {
  const { lines, log } = logged()
  log.requestFailed('UNLINK', 4, new ThinfsError('VOLUME_MISSING', 'a'))
  log.requestFailed('READ', 4, new Error('a bug'))
  for (let i = 0; i < 12; i++) {
    log.requestFailed('READ', 4, new ThinfsError('METADATA_CORRUPT', 'block 7'))
  }
  const levels = lines.map(([level]) => level)
  t.same(levels.slice(0, 2), ['debug', 'debug'])
  t.equal(levels.filter(level => level === 'error').length, 10)
  t.equal(levels.length, 14, 'none is lost to those who look closely')
})
