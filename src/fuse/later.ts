import type { Later } from '../base/index.js'
import { errnoOf } from '../base/index.js'

/** `next` of a value that is there now or comes later. */
export function later<T, U>(value: Later<T>, next: (value: T) => Later<U>): Later<U> {
  return value instanceof Promise ? value.then(next) : next(value)
}

/** `attempt`, and where that fails with `errno`, `instead`. */
export function orElse<T>(
  attempt: () => Later<T>,
  errno: string,
  instead: () => Later<T>,
): Later<T> {
  const recover = (err: unknown): Later<T> => {
    if (errnoOf(err) !== errno) throw err
    return instead()
  }
  try {
    const value = attempt()
    return value instanceof Promise ? value.catch(recover) : value
  } catch (err) {
    return recover(err)
  }
}
