// What drives the service, in one file: there is one at a time, and files that wait for each other
// would keep those from running that could.
import './host/dmsetup.js'
import './host/events.js'
import './host/examples.js'
import './host/kernel-table.js'
import './host/kill.js'
import './host/lvm.js'
import './host/refusals.js'
