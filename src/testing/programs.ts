/** Programs of the system that work on a volume. */
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
 * @throws TOOL_FAILED with what it says, or how to install it
 */
export async function run(program: string, ...args: string[]): Promise<void> {
  try {
    await promisify(execFile)(program, args, { env: environment() })
  } catch (err) {
    const { stderr, code } = err as { stderr?: string; code?: string | number }
    const install = `${program} is not installed: apt-get install ${PACKAGES[program] ?? program}`
    const detail = code === 'ENOENT' ? install : `${program}: ${stderr?.trim() || String(err)}`
    throw new ThinfsError('TOOL_FAILED', detail, { cause: err })
  }
}

/** Programs of filesystems are where an ordinary user does not look. */
const environment = (): NodeJS.ProcessEnv => ({
  ...process.env,
  LC_ALL: 'C',
  PATH: `${process.env.PATH ?? ''}:/usr/sbin:/sbin`,
})
