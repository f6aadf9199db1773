import { errnoOf } from '../../src/base/index.js'

/** The name of the errno that an act fails with, thrown or rejected; null when it does not fail. */
export async function errnoFrom(act: () => unknown): Promise<string | null> {
  try {
    await act()
    return null
  } catch (err) {
    return errnoOf(err)
  }
}
