// The runner has its own loader compile every test file on Node before 22, whatever
// `type-strip-only` in .taprc says: four seconds of CPU for each file. tsx loads them.
process.env.TAP_TYPE_STRIP_ONLY = '1'
