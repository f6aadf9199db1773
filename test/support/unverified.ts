// Imported first: what THINFS_VERIFY asserts holds for sound metadata, and a fuzzed one breaks it.
delete process.env.THINFS_VERIFY
