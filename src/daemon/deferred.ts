/** A promise that whoever has the object resolves or rejects. */
export class Deferred<T> {
  readonly promise: Promise<T>
  declare resolve: (value: T) => void
  declare reject: (err: Error) => void

  constructor() {
    this.promise = new Promise((resolve, reject) => {
      this.resolve = resolve
      this.reject = reject
    })
    // Without this a rejection that no caller awaits yet would end the process.
    this.promise.catch(() => {})
  }
}
