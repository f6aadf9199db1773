/** A value now, or later: what need not wait makes no promise. */
export type Later<T> = T | Promise<T>
