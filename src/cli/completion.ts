import { Argument, type Command } from 'commander'
import { command, type Output, print } from './command.js'

const SHELLS = ['bash', 'zsh', 'fish']

export const completion = command(
  'completion',
  'Print a script that completes commands, options and names of volumes.',
  'source <(thinfs completion bash)',
)
  .addArgument(new Argument('<SHELL>', 'whose script').choices(SHELLS))
  .addHelpText(
    'after',
    `
For good, as root:
  $ thinfs completion bash > /usr/share/bash-completion/completions/thinfs
  $ thinfs completion zsh > /usr/share/zsh/vendor-completions/_thinfs
  $ thinfs completion fish > /usr/share/fish/vendor_completions.d/thinfs.fish`,
  )
  .action(async (shell: 'bash' | 'zsh' | 'fish', output: Output, self: Command) => {
    const { completionScript } = await import('./completion-scripts.js')
    const script = completionScript(shell, self.parent!)
    print(output, { script }, script)
  })
