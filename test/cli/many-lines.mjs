// Runs the command lines that come as JSON on stdin, one after the other, in this one process:
// starting a process takes longer than what most of them do. Prints their outcomes as JSON.
import { text } from 'node:stream/consumers'
import { run } from '../../dist/cli/main.js'

const real = process.stdout.write
const lines = JSON.parse(await text(process.stdin))
const outcomes = []
// Each line watches them, as the one line of a process does.
for (const name of ['stdout', 'stderr']) process[name].setMaxListeners(0)
for (const line of lines) {
  const outcome = { status: 0, stdout: '', stderr: '' }
  for (const name of ['stdout', 'stderr']) {
    process[name].write = (chunk, encoding, callback) => {
      outcome[name] += chunk
      const done = typeof encoding === 'function' ? encoding : callback
      if (done) process.nextTick(done)
      return true
    }
  }
  process.exitCode = 0
  outcome.status = await run(line)
  outcomes.push(outcome)
}
process.exitCode = 0
real.call(process.stdout, JSON.stringify(outcomes))
