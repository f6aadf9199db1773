/** The crash lab: faults in what a volume's users see of it. */
export { Lab, type LabOptions } from './lab.js'
