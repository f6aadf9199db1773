/** Control characters, separators of lines, and what turns the direction of writing. */
const HIDDEN = /[\p{Cc}\u2028\u2029\u202a-\u202e\u2066-\u2069]/gu

/**
 * Text of elsewhere, such as a path or an argument, for a terminal: what would act on it, or pass
 * for other text, is written as a number, `\x1b` or `\u202e`.
 */
export const visible = (text: string): string =>
  text.replace(HIDDEN, found => {
    const code = found.codePointAt(0)!.toString(16)
    return found < '\u0100' ? `\\x${code.padStart(2, '0')}` : `\\u${code.padStart(4, '0')}`
  })
