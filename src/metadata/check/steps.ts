/** Work that yields every few milliseconds, so that others have their turn, and results in a T. */
export type Steps<T> = Generator<void, T, void>
