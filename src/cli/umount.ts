import { ThinfsError } from '../base/index.js'
import { umountUnasked } from '../control/index.js'
import { unmountDead } from '../host/index.js'
import { command, type Output, POOL_HELP, print } from './command.js'
import { placeOfPool, withDaemonOf } from './pool.js'
import { removeRescued } from './rescue-folder.js'

interface Options extends Output {
  force?: true
}

export const umount = command(
  'umount',
  'Unmount a pool; returns when all is committed.',
  'thinfs umount /mnt/thin',
)
  .argument('<POOL>', POOL_HELP)
  .option(
    '--force',
    'also while somebody uses it, who gets I/O errors; what was acknowledged is committed',
  )
  .action(async (pool: string, { force, ...output }: Options) => {
    const place = placeOfPool(pool)
    // This command must not hold the mount that it stands in.
    process.chdir('/')
    try {
      await withDaemonOf(
        place,
        daemon => (force ? daemon.umountForcibly() : daemon.umount()),
        ({ mount, pid }) => umountUnasked(mount, pid, force === true),
      )
    } catch (err) {
      if (!(err instanceof ThinfsError && err.code === 'NOT_MOUNTED')) throw err
      // Both processes have died: nothing is left to commit.
      const ended = await unmountDead(place.file)
      if (ended.length === 0) throw err
      process.stderr.write(`thinfs: nobody served ${ended.join(', ')} any more\n`)
    }
    removeRescued(place.folder)
    print(output, { file: place.file }, '')
  })
