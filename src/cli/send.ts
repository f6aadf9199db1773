import { ThinfsError } from '../base/index.js'
import type { ResumePoint } from '../streams/index.js'
import type { HeldVolume } from '../volumes/index.js'
import { type Output, poolCommand } from './command.js'
import { withHeld } from './held.js'
import { mustNotBeTerminal, writeOut } from './output.js'
import { Progress } from './progress.js'

interface Options extends Output {
  from?: string
  resume?: string
  compress: boolean
}

export const send = poolCommand(
  'send',
  'Write a snapshot, or what it has changed since an older one, to standard output.',
  'thinfs send /srv/pool web@tuesday --from web@monday | ssh host thinfs receive /srv/pool web@tuesday',
)
  .argument('<SNAPSHOT>', 'to send; of a volume that is in use, what it holds at this moment')
  .option('--from <older>', 'send what differs from this one, which was sent or received before')
  .option('--resume <token>', 'go on where thinfs receive --token says that a stream was cut short')
  .option('--no-compress', 'do not compress by zstd')
  .addHelpText(
    'after',
    `
What is in use is found in the metadata: what differs is read, and nothing else; holes are not sent.
With --from, the receiver must have OLDER as it was sent, and OLDER must not have changed since: a
volume that was written to is refused (NO_BASE), here and there. With --json the summary goes to
standard error. A stream that was cut short goes on with --resume, the same SNAPSHOT and the same
--from, where thinfs receive had --resume as well; else send it anew.`,
  )
  .action(async (pool: string, name: string, options: Options) => {
    const { from, compress, json } = options
    const { parseToken, sendTo } = await import('../streams/index.js')
    const point = options.resume === undefined ? null : parseToken(options.resume)
    const names = from === undefined ? [name] : [name, from]
    const request = { names, identify: name }
    await withHeld(pool, 'write', request, async held => {
      mustNotBeTerminal('the stream')
      const [volume, older] = held.volumes as [HeldVolume, HeldVolume | undefined]
      mustBeWhole(volume)
      if (older !== undefined && older.content === null) throw noBase(older)
      if (point !== null) mustGoOn(point, volume, older)
      const { metadata, dataBlockSize: blockSize } = held
      const read = await held.readerOf(volume)
      const source = {
        ...{ metadata, read, blockSize },
        ...volume,
        base: older === undefined ? null : { ...older, content: older.content! },
        resume: point?.offset ?? 0,
      }
      const progress = new Progress(`sending ${volume.name}`, volume.size)
      let bytes = 0
      try {
        await sendTo(source, writeOut, {
          compress,
          onProgress: (offset, sent) => {
            bytes = sent
            progress.show(offset, sent)
          },
        })
      } finally {
        progress.end()
      }
      if (json) process.stderr.write(`${JSON.stringify({ sent: volume.name, bytes }, null, 2)}\n`)
    })
  })

/**
 * @throws NO_BASE for a volume that is not what the first part was of; BAD_ARGUMENT for its base
 */
function mustGoOn(point: ResumePoint, volume: HeldVolume, older: HeldVolume | undefined): void {
  if (volume.content !== point.content) {
    const what = `${volume.name}: it is not what the token is of, or has changed since`
    throw new ThinfsError('NO_BASE', `${what}; give the stream up (thinfs receive --abort)`)
  }
  if ((older?.content ?? null) === point.base) return
  const wanted = point.base === null ? 'was without --from' : 'went on from another --from'
  throw new ThinfsError('BAD_ARGUMENT', `--resume: the stream that was cut short ${wanted}`)
}

/** A stream has what a volume maps, and would leave out what shows from below. */
function mustBeWhole({ name, externalOrigin }: HeldVolume): void {
  if (!externalOrigin) return // An engine of before has none.
  const what = `${name}: a stream would lack what it shows of its external origin ${externalOrigin}`
  const how = 'thinfs export makes an image of all of it'
  throw new ThinfsError('NOT_SUPPORTED', `${what}; ${how}`)
}

const noBase = ({ name }: HeldVolume): ThinfsError => {
  const what = `${name}: it was never sent or received, or has changed since`
  return new ThinfsError('NO_BASE', `${what}; send the newer one without --from`)
}
