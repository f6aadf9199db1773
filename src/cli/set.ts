import { ThinfsError } from '../base/index.js'
import type { PoolConfig } from '../config/index.js'
import type { Change, PoolSettings } from '../volumes/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { withDaemonOr } from './pool.js'

/** Keys of pool.yaml that may be set, and what their text is there. */
const KEYS: Record<string, (text: string) => PoolSettings> = {
  on_full: text => ({ onFull: text as PoolConfig['onFull'] }),
  queue_timeout: text => ({ queueTimeout: Number(text) }),
}

export const set = command(
  'set',
  `Set on_full or queue_timeout of a pool, at once where it is mounted, and in its pool.yaml. Writes
that wait for space fail with on_full=error, and begin to wait anew with on_full=queue.`,
  'thinfs set /srv/pool on_full=error',
)
  .argument('<POOL>', POOL_HELP)
  .argument('<KEY=VALUE...>', 'on_full=queue, on_full=error; queue_timeout=60: seconds, 0 for ever')
  .action(async (pool: string, words: string[], output: Output) => {
    const { change, settings } = parse(words)
    const { changePoolYaml, mustTake } = await import('../volumes/index.js')
    const write = async (file: string): Promise<void> => {
      mustTake(file, change)
      await changePoolYaml(file, change)
    }
    await withDaemonOr(
      pool,
      'write',
      async (admin, { file }) => {
        // An engine that follows one that dies now reads it there.
        await write(file)
        await admin.set(settings)
      },
      ({ file }) => write(file),
    )
    print(output, settings, '')
  })

function parse(words: readonly string[]): { change: Change; settings: PoolSettings } {
  const found = words.map(word => {
    const [, key = '', text = ''] = /^([^=]*)=(.*)$/s.exec(word) ?? []
    if (Object.hasOwn(KEYS, key)) return { key, text }
    const allowed = `${Object.keys(KEYS).join(', ')}, as in on_full=error`
    const others = 'other keys of pool.yaml count from the next mount on'
    throw new ThinfsError('BAD_ARGUMENT', `${word}: allowed are ${allowed}; ${others}`)
  })
  const settings: PoolSettings = Object.assign(
    {},
    ...found.map(({ key, text }) => KEYS[key]!(text)),
  )
  return {
    settings,
    change: {
      settings: found.map(({ key, text }) => [[key], text]),
      apply: config => ({ ...config, ...settings }),
    },
  }
}
