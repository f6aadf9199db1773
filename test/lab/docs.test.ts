// Goal: the worked example of docs/LAB.md runs as it is written, and without root. Method: its
// script, run by an ordinary user's bash; what a line's comment says that it prints has to come, in
// this order.
import { readFileSync } from 'node:fs'
import { resolve } from 'node:path'
import t from 'tap'
import { needs } from '../support/mounted-pool.js'
import { OrdinaryUser } from '../support/ordinary-user.js'

t.test('docs/LAB.md: the worked example', needs('/dev/fuse'), async t => {
  const text = readFileSync(resolve(import.meta.dirname, '../../docs/LAB.md'), 'utf8')
  const script = /^## A worked example\n.*?^```sh\n(.*?)^```$/ms.exec(text)![1]!
  const user = await OrdinaryUser.make(t)
  const printed = await user.sh(`mkdir mount; POOL=pool MOUNT=mount; ${script}`)
  const wanted = [...script.matchAll(/# prints: (.*)$/gm)].map(([, line]) => line!)
  t.ok(wanted.length > 3)
  let rest = printed
  for (const line of wanted) {
    const at = rest.indexOf(line)
    t.ok(at >= 0, line, { printed })
    rest = rest.slice(at + line.length)
  }
})
