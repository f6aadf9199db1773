/** Programs of the system that work on a volume, or below it. */
import { execFile } from 'node:child_process'
import { promisify } from 'node:util'
import { ThinfsError } from '../base/index.js'

/** Debian's name of the package that has a program, where it is another. */
const PACKAGES: Readonly<Record<string, string>> = {
  'mkfs.ext4': 'e2fsprogs',
  cp: 'coreutils',
  losetup: 'mount',
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
    const { stderr, code } = err as { stderr?: string; code?: string | number }
    const install = `is not installed: apt-get install ${PACKAGES[program] ?? program}`
    const said = code === 'ENOENT' ? install : stderr?.trim() || String(err)
    const detail = said.startsWith(`${program}: `) ? said : `${program}: ${said}`
    throw new ThinfsError('TOOL_FAILED', detail, { cause: err })
  }
}

/** Programs of filesystems are where an ordinary user does not look. */
const environment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  LC_ALL: 'C',
  PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin`,
})
