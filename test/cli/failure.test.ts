import t from 'tap'
import { ThinfsError } from '../../src/base/index.js'
import { lineOf } from '../../src/cli/failure.js'

t.test('advice for files is for files alone', async t => {
  const line = (message: string, errno: string) =>
    lineOf(new ThinfsError('IO_ERROR', message, { errno }), false)
  t.match(
    line('/srv/data: write', 'EPERM'),
    /^thinfs: \/srv\/data: write; .*lsattr.* \(IO_ERROR\)$/,
  )
  t.match(line('/srv/data: open', 'EACCES'), /; see its owner and its mode \(IO_ERROR\)$/)
  for (const at of ['nbd://h/x', 'nbds://h/x', 'nbd+unix:///x?socket=/run/s', 'rbd:p/i']) {
    for (const errno of ['EPERM', 'EACCES']) {
      t.equal(line(`${at}: refused`, errno), `thinfs: ${at}: refused (IO_ERROR)`)
    }
  }
})
