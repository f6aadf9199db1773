/** A source tree to unpack: the same bytes every time, with sizes as a kernel's has them. */
import { execFile } from 'node:child_process'
import { mkdirSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { promisify } from 'node:util'
import { KIB, MIB } from '../src/base/index.js'

export const NR_FILES = 30_000
const FILES_PER_FOLDER = 15
const NR_SUBSYSTEMS = 40
const MEDIAN_SIZE = 4 * KIB
/** Of the logarithms: with the median this makes about 300 MB, few files having most of it. */
const SPREAD = 1.35
const LARGEST = 2 * MIB

/** Makes a tar of NR_FILES files. @returns its path, in `folder` */
export async function makeTar(folder: string): Promise<string> {
  const tree = join(folder, 'tree')
  const random = randomNumbers(1)
  // Incompressible, and no two files are the same.
  const bytes = Buffer.from(Uint32Array.from({ length: MIB }, () => random() * 2 ** 32).buffer)
  for (let i = 0; i < NR_FILES; i++) {
    const part = Math.floor(i / FILES_PER_FOLDER)
    const parent = join(tree, `subsystem-${part % NR_SUBSYSTEMS}`, `part-${part}`)
    if (i % FILES_PER_FOLDER === 0) mkdirSync(parent, { recursive: true })
    const size = Math.min(Math.ceil(MEDIAN_SIZE * Math.exp(SPREAD * gaussian(random))), LARGEST)
    const begin = Math.floor(random() * (bytes.length - size))
    writeFileSync(join(parent, `file-${i}.c`), bytes.subarray(begin, begin + size))
  }
  const tar = join(folder, 'tree.tar')
  const alike = ['--sort=name', '--mtime=@0', '--owner=0', '--group=0', '--numeric-owner']
  await promisify(execFile)('tar', ['-cf', tar, ...alike, '-C', tree, '.'])
  rmSync(tree, { recursive: true })
  return tar
}

/** Numbers in [0, 1), the same for the same seed. Source: mulberry32 by Tommy Ettinger. */
function randomNumbers(seed: number): () => number {
  let state = seed
  return () => {
    state = (state + 0x6d2b79f5) | 0
    let t = Math.imul(state ^ (state >>> 15), 1 | state)
    t = (t + Math.imul(t ^ (t >>> 7), 61 | t)) ^ t
    return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32
  }
}

/** Box and Muller: mean 0, deviation 1. */
const gaussian = (random: () => number): number =>
  Math.sqrt(-2 * Math.log(1 - random())) * Math.cos(2 * Math.PI * random())
