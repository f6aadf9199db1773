/** The programs of the system that thinfs calls, or that people use on its volumes. */
import { execFile } from 'node:child_process'
import { accessSync, constants } from 'node:fs'
import { join } from 'node:path'
import { asRoot, type Finding, ok, warn } from './finding.js'

/**
 * Names of a package; `other` is that of Fedora, Alpine and Arch where it is another than Debian's.
 */
export interface Package {
  apt: string
  other?: string
}

interface Program {
  /** The package, as people know it. */
  name: string
  program: string
  args: readonly string[]
  version: RegExp
  /** Features that need it. */
  use: string
  package: Package
}

const PROGRAMS: readonly Program[] = [
  {
    name: 'fuse3',
    program: 'fusermount3',
    args: ['-V'],
    version: /version: (\S+)/,
    use: 'mounting without root',
    package: { apt: 'fuse3' },
  },
  {
    name: 'util-linux',
    program: 'losetup',
    args: ['--version'],
    version: /util-linux (\S+)/,
    use: 'attach',
    package: { apt: 'mount', other: 'util-linux' },
  },
  {
    name: 'e2fsprogs',
    program: 'mkfs.ext4',
    args: ['-V'],
    version: /mke2fs (\S+)/,
    use: 'ext4 on volumes',
    package: { apt: 'e2fsprogs' },
  },
  {
    name: 'fuse2fs',
    program: 'fuse2fs',
    args: ['-V'],
    version: /fuse2fs (\S+)/,
    use: 'mounting ext4 without root',
    package: { apt: 'fuse2fs', other: 'e2fsprogs' },
  },
  {
    name: 'thin-provisioning-tools',
    program: 'thin_check',
    args: ['-V'],
    version: /(\d\S+)/,
    use: 'repairing metadata',
    package: { apt: 'thin-provisioning-tools', other: 'device-mapper-persistent-data' },
  },
]

/** Debian keeps some of them in these folders, which are not on the PATH of ordinary users. */
const SYSTEM = ['/usr/sbin', '/sbin']

/** A version of each, as it says itself. */
export const lookAtPrograms = (): Promise<Finding[]> => Promise.all(PROGRAMS.map(lookAt))

async function lookAt(wanted: Program): Promise<Finding> {
  const { name, program, args, version, use } = wanted
  const path = find(program)
  if (path === null) {
    return warn(name, `${program} is not installed: no ${use}`, install(wanted.package))
  }
  const said = await new Promise<string>(resolve => {
    execFile(path, [...args], (_, stdout, stderr) => resolve(stdout + stderr))
  })
  const found = version.exec(said)?.[1] ?? 'of unknown version'
  const folder = SYSTEM.find(folder => path.startsWith(`${folder}/`))
  if (folder === undefined || pathFolders().includes(folder)) return ok(name, found)
  return warn(name, `${found}, but ${folder} is not on the PATH`, `export PATH="$PATH:${folder}"`)
}

/** The path of a program, on the PATH or where the system's are; null when there is none. */
export function find(program: string): string | null {
  const paths = [...pathFolders(), ...SYSTEM].map(folder => join(folder, program))
  return paths.find(isExecutable) ?? null
}

const pathFolders = (): string[] => (process.env.PATH ?? '').split(':').filter(path => path !== '')

function isExecutable(path: string): boolean {
  try {
    accessSync(path, constants.X_OK)
    return true
  } catch {
    return false
  }
}

const MANAGERS = [
  ['apt-get', 'apt-get install'],
  ['dnf', 'dnf install'],
  ['apk', 'apk add'],
  ['pacman', 'pacman -S'],
  ['zypper', 'zypper install'],
] as const

/** The command that installs a package here; null where nothing is known that would. */
export function install({ apt, other = apt }: Package): string | null {
  const manager = MANAGERS.find(([program]) => find(program) !== null)
  if (manager === undefined) return null
  return asRoot(`${manager[1]} ${manager[0] === 'apt-get' ? apt : other}`)
}
