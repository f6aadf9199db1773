/** Programs of the system that work on a volume, or below it. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { inTime, ThinfsError } from '../base/index.js'

/** Debian's name of the package that has a program, where it is another. */
const PACKAGES: Readonly<Record<string, string>> = {
  'mkfs.ext4': 'e2fsprogs',
  cp: 'coreutils',
  losetup: 'mount',
  umount: 'mount',
  blkid: 'util-linux',
  fsck: 'util-linux',
  fsfreeze: 'util-linux',
}

/**
 * Runs a program that has to succeed.
 * @returns what it prints
 * @throws TOOL_FAILED with what it says, or how to install it
 */
export async function runTool(program: string, ...args: string[]): Promise<string> {
  try {
    const { stdout } = await promisify(execFile)(program, args, { env: environment() })
    return stdout.trim()
  } catch (err) {
    throw toolFailed(program, err)
  }
}

function toolFailed(program: string, err: unknown): ThinfsError {
  const { stderr, code } = err as { stderr?: string; code?: string | number }
  const install = `is not installed: apt-get install ${PACKAGES[program] ?? program}`
  const said = code === 'ENOENT' ? install : stderr?.trim() || String(err)
  const detail = said.startsWith(`${program}: `) ? said : `${program}: ${said}`
  return new ThinfsError('TOOL_FAILED', detail, { cause: err })
}

/**
 * As `runTool`, for a program that may wait for ever: for a device that hangs, even SIGKILL does
 * not end it.
 * @param ms how long it may take
 * @throws TOOL_FAILED also when it has not ended by then: it may go on
 */
export async function runToolWithin(
  ms: number,
  program: string,
  ...args: string[]
): Promise<string> {
  const running = promisify(execFile)(program, args, { env: environment() })
  const { child } = running
  try {
    const ended = await inTime(ms, running, null)
    if (ended !== null) return ended.stdout.trim()
    const what = `has not ended after ${ms / 1000} s: something that it asks hangs`
    throw new ThinfsError('TOOL_FAILED', `${program} ${args.join(' ')}: ${what}`)
  } catch (err) {
    throw err instanceof ThinfsError ? err : toolFailed(program, err)
  } finally {
    // A program that still runs does not keep this process from ending.
    child.kill('SIGKILL')
    child.unref()
    child.stdout?.destroy()
    child.stderr?.destroy()
  }
}

/** Programs of filesystems are where an ordinary user does not look. */
const environment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  LC_ALL: 'C',
  PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin`,
})
