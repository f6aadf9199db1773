/**
 * The command line: one file a command, each parses, calls the pool or its daemon, and prints.
 *
 * A command to a mounted pool loads what talks to a daemon and no more. The rest is imported when
 * it is needed; scripts/bundle.mjs keeps the two apart.
 */
import { createRequire } from 'node:module'
import { Command, CommanderError, type OutputConfiguration } from 'commander'
import { ThinfsError } from '../base/index.js'
import { isUserUnknown } from '../host/index.js'
import { adopt } from './adopt.js'
import { attach } from './attach.js'
import { attached } from './attached.js'
import { check } from './check.js'
import { completion } from './completion.js'
import { create } from './create.js'
import { delta } from './delta.js'
import { detach } from './detach.js'
import { MEANT } from './did-you-mean.js'
import { dm } from './dm.js'
import { doctor } from './doctor.js'
import { dump } from './dump.js'
import { events } from './events.js'
import { exportImage } from './export.js'
import { extend } from './extend.js'
import { EXIT_USAGE, exitCodeOf, lineOf, usageLineOf } from './failure.js'
import { importImage } from './import.js'
import { init } from './init.js'
import { inject } from './inject.js'
import { table } from './kernel-table.js'
import { list } from './list.js'
import { map } from './map.js'
import { message } from './message.js'
import { metrics } from './metrics.js'
import { mount } from './mount.js'
import { mountVolume } from './mount-volume.js'
import { finishOutput, watchOutput } from './output.js'
import { pools } from './pools.js'
import { prune } from './prune.js'
import { receive } from './receive.js'
import { record } from './record.js'
import { remove } from './remove.js'
import { rename } from './rename.js'
import { repair } from './repair.js'
import { replay } from './replay.js'
import { rescue } from './rescue.js'
import { resize } from './resize.js'
import { restart } from './restart.js'
import { restore } from './restore.js'
import { rmap } from './rmap.js'
import { rollback } from './rollback.js'
import { run as runWithPool } from './run.js'
import { send } from './send.js'
import { serve } from './serve.js'
import { set } from './set.js'
import { shrink } from './shrink.js'
import { snapshot } from './snapshot.js'
import { stats } from './stats.js'
import { status } from './status.js'
import { top } from './top.js'
import { trim } from './trim.js'
import { umount } from './umount.js'
import { umountVolume } from './umount-volume.js'

const COMMANDS = [
  ...[init, adopt, mount, umount, restart],
  ...[create, snapshot, rollback, remove, prune, rename, resize, trim, extend, shrink, set],
  ...[list, status, message],
  ...[stats, top, events, metrics, serve],
  ...[send, receive, importImage, exportImage],
  ...[delta, map, rmap, dump, table],
  ...[attach, detach, mountVolume, umountVolume],
  ...[check, repair, restore, rescue],
  ...[runWithPool, record, replay, inject],
  ...[attached, dm, doctor],
  ...[pools, completion],
]

const { version } = createRequire(import.meta.url)('#package.json') as { version: string }

/**
 * Runs a command line without the program's name. Returns its exit code, which one that has others
 * than these has set already; never throws.
 * @param calledAs the name of the file that was run; those of mount(8)'s helpers mean these
 */
export async function run(args: string[], calledAs = 'thinfs'): Promise<number> {
  if (!/^u?mount\./.test(calledAs)) return runProgram(args, commandLine)
  // mount(8) takes it away, and daemons run programs.
  process.env.PATH ??= '/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin'
  const { helperOf, helperStatus } = await import('./mount-helper.js')
  const helper = (asJson: boolean) => settingsOf(helperOf(calledAs), calledAs, asJson)
  return helperStatus(await runProgram(args, helper))
}

async function runProgram(args: string[], make: (asJson: boolean) => Command): Promise<number> {
  watchOutput()
  const asJson = wantsJson(args)
  try {
    const program = make(asJson)
    await program.parseAsync(asOneMeansIt(program, args), { from: 'user' }).catch(err => {
      // Those of code 0 are help and version.
      if (!(err instanceof CommanderError && err.exitCode === 0)) throw err
    })
    await finishOutput()
    return Number(process.exitCode ?? 0)
  } catch (err) {
    // Commander has printed its own errors.
    if (err instanceof CommanderError) return EXIT_USAGE
    process.stderr.write(`${lineOf(err, asJson)}\n`)
    if (wantsStack(args) && err instanceof Error) process.stderr.write(`${err.stack}\n`)
    return exitCodeOf(err)
  }
}

/**
 * `help X` is `X --help`. Of an X that is none the parser says which one it looks like, whatever
 * stands behind it.
 */
function asOneMeansIt(program: Command, args: string[]): string[] {
  const { commands } = program
  const [first, ...others] = args
  if (commands.length === 0 || first === undefined || first.startsWith('-')) return args
  const name = first === 'help' ? others[0] : first
  if (name === undefined || name === 'help') return args
  if (!commands.some(command => command.name() === name)) {
    mustBeOurs(program, name)
    return [name]
  }
  return first === 'help' ? [name, '--help'] : args
}

/** Refuses the name that a command has elsewhere, where the spelling would lead to another. */
function mustBeOurs(program: Command, name: string): void {
  if (!Object.hasOwn(MEANT, name)) return
  program.error(`error: unknown command '${name}'\n(Did you mean ${MEANT[name]}?)`)
}

/** All commands, with their help, and how what is wrong about a command line is told. */
export function commandLine(asJson = false): Command {
  const program = settingsOf(new Command('thinfs'), 'thinfs', asJson)
    .description('Thin volumes as files: dm-thin without device-mapper.')
    .version(version)
    // Else lvcreate's `-V 10G` behind a command would print the version, and succeed.
    .enablePositionalOptions()
    .helpCommand('help [COMMAND]', 'Show the help of a command.')
    .addHelpText(
      'after',
      `
POOL is a pool.yaml, the folder that has one, or the pool's mount point. A pool need not be mounted
but for attach and detach. Sizes: bytes, or K, M, G, T, P (powers of 1024).

Exit codes: 0 done, 1 failed, 2 not a command that could work; run has those of its command.

Example:
  $ thinfs init /srv/pool --data-size 100G
  $ thinfs mount /srv/pool /mnt/thin
  $ thinfs create /mnt/thin web --size 10G
  $ mkfs.ext4 $(thinfs attach /mnt/thin web)`,
    )
  for (const command of COMMANDS) {
    const usageErrors = usageErrorsOf(`thinfs ${command.name()}`, asJson)
    program.addCommand(command.copyInheritedSettings(program).configureOutput(usageErrors))
  }
  return program
}

/** The part that all programs share. */
const settingsOf = (program: Command, name: string, asJson: boolean): Command =>
  program
    .exitOverride()
    .hook('preAction', (_, action) => {
      mustKnowItsUser()
      mustSaySomething(action)
    })
    .configureOutput(usageErrorsOf(name, asJson))

const usageErrorsOf = (program: string, asJson: boolean): OutputConfiguration => ({
  outputError: (text, write) => write(`${usageLineOf(text, program, asJson)}\n`),
})

/** Refuses a file of somebody else that could pass for the user's own. @throws NOT_TRUSTED */
function mustKnowItsUser(): void {
  if (!isUserUnknown()) return
  const detail = 'this user namespace shows its user as all others, 65534: use unshare -Urm'
  throw new ThinfsError('NOT_TRUSTED', detail)
}

/**
 * Refuses an empty argument, as a shell makes it of a variable that is not set: it would be the
 * current folder.
 * @throws BAD_ARGUMENT
 */
function mustSaySomething({ registeredArguments, processedArgs }: Command): void {
  const at = processedArgs.indexOf('')
  if (at < 0) return
  const detail = `${registeredArguments[at]!.name()} is empty`
  throw new ThinfsError('BAD_ARGUMENT', detail)
}

const wantsJson = (args: readonly string[]): boolean => optionsOf(args).includes('--json')

const wantsStack = (args: readonly string[]): boolean =>
  Boolean(process.env.THINFS_DEBUG) ||
  /--log-level[= ](debug|trace)\b/.test(optionsOf(args).join(' '))

/** The words before `--`. */
function optionsOf(args: readonly string[]): readonly string[] {
  const end = args.indexOf('--')
  return args.slice(0, end < 0 ? args.length : end)
}
