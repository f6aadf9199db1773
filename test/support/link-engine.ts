// An engine of device tables that has no tables: it keeps what it is told in a list, writes that to
// the file that it is given after each call, and dies as it is told. A message `die-before` ends it
// before the message is carried out, `die-after` when it was, and is not answered yet.
import { appendFileSync } from 'node:fs'
import { ipcConnection, READY, SERVE, serveTableEngine } from '../../src/control/index.js'
import type { TableEngine } from '../../src/tables/index.js'

const [log, how] = process.argv.slice(2) as [string, string | undefined]
const note = (...words: (string | number)[]): void => {
  appendFileSync(log, `${[process.pid, ...words].join(' ')}\n`)
}
const die = (): Promise<never> => {
  process.kill(process.pid, 'SIGKILL')
  return new Promise(() => {})
}

note('starts')
if (how === 'dies at once') process.exit(7)
const connection = ipcConnection(process)
const quiet = async (name: string, ...args: (string | number)[]): Promise<void> => {
  note(name, ...args)
}
const engine: TableEngine = {
  create: minor => quiet('create', minor),
  remove: minor => quiet('remove', minor),
  load: minor => quiet('load', minor),
  clear: minor => quiet('clear', minor),
  suspend: minor => quiet('suspend', minor),
  resume: async minor => {
    await quiet('resume', minor)
    return { size: 512 }
  },
  message: async (_minor, _sector, words) => {
    const isFirst = how === 'first'
    if (isFirst && words.at(-1) === 'die-before') return die()
    note('message', ...words)
    if (isFirst && words.at(-1) === 'die-after') return die()
    if (words.at(-1) === 'die-after') throw Object.assign(new Error('there'), { code: 'EEXIST' })
    return null
  },
  status: async minor => [`${minor} of ${process.pid}`],
}
serveTableEngine(connection, engine)
connection.onRequest(SERVE, async () => {
  note('serve')
  void connection.sendNotification(READY, { negotiated: { maxWrite: how } as never })
  return null
})
connection.listen()
