// Goal: the completion scripts work in the shells that they are for. Method: bash, zsh and fish
// load them and are asked for what a person would get at the end of a line.
import { mkdtempSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { dirname, join } from 'node:path'
import t from 'tap'
import { done, PROGRAM, refused, run } from './command-line.js'

const folder = mkdtempSync(join(tmpdir(), 'thinfs-cli-'))
t.teardown(() => rmSync(folder, { recursive: true }))
symlinkSync(PROGRAM, join(folder, 'thinfs'))
const path = `PATH=${folder}:${dirname(process.execPath)}:${process.env.PATH}`
const pool = join(folder, 'pool')
const file = (shell: string): string => join(folder, `completion.${shell}`)

const SHELLS: Readonly<Record<string, (line: string) => Promise<string[]>>> = {
  bash: line => {
    const complete = `source ${file('bash')}; COMP_LINE=$1 COMP_POINT=\${#1}; _thinfs
      printf '%s\\n' "\${COMPREPLY[@]}"`
    return lines('bash', '--norc', '-uc', complete, 'bash', line)
  },
  fish: async line => {
    const complete = `source ${file('fish')}; complete --do-complete "$argv[1]"`
    const found = await lines('fish', '--no-config', '-c', complete, line)
    // What fish completes of itself: paths.
    return found.map(line => line.split('\t')[0]!).filter(word => !word.endsWith('/'))
  },
  // An interactive one is typed to. Instead of a menu it prints what it would choose from.
  zsh: async line => [...new Set(await lines('zsh', '-f', join(folder, 'ask.zsh'), line))],
}

const ASK = `zmodload zsh/zpty
zpty asked 'PS1= zsh -f -i'
say() { zpty -w asked "$1"; }
say 'autoload -U compinit; compinit -u -D; source ${file('zsh')}; setopt nozle 2> /dev/null; setopt zle'
say 'compadd() { builtin compadd -A found "$@"; print -r -- "found<\${(j:><:)found}>"; }'
say 'show() { print -r -- "end of it"; }; zle -N show; bindkey "^X" show; print -r -- "re""ady"'
until [[ $all == *ready* ]]; do zpty -r asked part && all+=$part; done
all=
zpty -w -n asked "$1"$'\\t\\x18'
until [[ $all == *"end of it"* ]]; do zpty -r asked part && all+=$part; done
print -r -- $all | grep -o 'found<.*>' | tr -s '<>' '\\n' | sed /^found/d
`

async function lines(...command: [string, ...string[]]): Promise<string[]> {
  const { status, stdout, stderr } = await run('env', path, 'timeout', '50', ...command)
  t.same({ status, stderr }, { status: 0, stderr: '' }, command.join(' '))
  return stdout.split('\n').filter(line => line !== '')
}

t.before(async () => {
  await done(
    t,
    'init',
    pool,
    '--data-size',
    '64M',
    '--volume',
    'web=1M',
    '--volume',
    'web@monday=1M',
  )
  writeFileSync(join(folder, 'ask.zsh'), ASK)
})

for (const [shell, complete] of Object.entries(SHELLS)) {
  t.test(shell, async t => {
    writeFileSync(file(shell), await done(t, 'completion', shell))
    t.same(await complete('thinfs snap'), ['snapshot'])
    t.ok((await complete('thinfs help li')).includes('list'))
    t.same(await complete('thinfs create --si'), ['--size'])
    t.same((await complete('thinfs dump --format ')).sort(), ['human', 'json', 'xml'])
    t.same(await complete('thinfs mount --log-level de'), ['debug'])
    t.ok((await complete(`thinfs list ${pool} --sort `)).includes('mapped'))
    const columns = await complete(`thinfs list ${pool} -o name,map`)
    // Of a list zsh completes the last word alone.
    t.same(columns, [shell === 'zsh' ? 'mapped' : 'name,mapped'])
    t.same((await complete(`thinfs send ${pool} web --from `)).sort(), ['web', 'web@monday'])
    t.same((await complete(`thinfs remove ${pool} `)).sort(), ['web', 'web@monday'])
    const last = await complete(`thinfs snapshot ${pool} web@m`)
    // readline replaces what stands behind its last separator.
    t.same(last, [shell === 'bash' ? 'monday' : 'web@monday'])
    t.same(await complete(`thinfs create ${pool} w`), [], 'a new name is nobody’s')
  })
}

t.test('another shell', async t => {
  await refused(t, 2, /Allowed choices are bash, zsh, fish/, 'completion', 'tcsh')
})
