/** Metadata made anew: by a restore, by a repair. */
export { type MappingWriter, MetadataBuilder, type NewSuperblock } from './metadata-builder.js'
export type { WrittenLeaf, WrittenTree } from './tree-writer.js'
