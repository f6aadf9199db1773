// The test runner has every Node process below it load a module that reports what it loads, which
// doubles its start and leaves a second thread in daemons and engines. thinfs is tested as people
// run it.
import processOnSpawn from 'process-on-spawn'

processOnSpawn.removeAllListeners()
delete process.env.NODE_OPTIONS
