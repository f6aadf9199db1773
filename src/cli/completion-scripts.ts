/**
 * Completion scripts for bash, zsh and fish, made of the commands that there are.
 *
 * Commands, options and the values of these stand in the script. Names of volumes the shell asks
 * thinfs for, with the pool that stands on the command line; paths it completes by itself.
 */
import type { Argument, Command, Option } from 'commander'
import { type Values, valuesOf } from './option-values.js'

/** The facts about a command that a shell needs. */
interface Described {
  name: string
  description: string
  options: Option[]
  args: readonly Argument[]
  /** The positions of its arguments that name existing volumes; the pool is at 1. */
  volumesAt: number[]
}

const VOLUME_ARGUMENTS = ['NAME', 'VOLUME', 'ORIGIN', 'SNAPSHOT', 'LEFT', 'RIGHT', 'OLD']
/** No shell is asked for more of a variadic argument than this. */
const PLACES = 9

function describe(program: Command): Described[] {
  const help = program.createHelp()
  return help.visibleCommands(program).map(command => {
    const args = command.registeredArguments
    const places = Array.from({ length: PLACES }, (_, i) => i + 1)
    return {
      name: command.name(),
      description: lineOf(help.subcommandDescription(command)),
      options: help.visibleOptions(command).filter(({ long }) => long !== undefined),
      args,
      volumesAt: places.filter(place => {
        const last = args.at(-1)
        return isVolume(args[place - 1] ?? (last?.variadic ? last : undefined))
      }),
    }
  })
}

const isVolume = (argument: Argument | undefined): boolean =>
  argument !== undefined &&
  VOLUME_ARGUMENTS.includes(argument.name()) &&
  !argument.description.startsWith('of the new')

const lineOf = (text: string): string => text.replace(/\s*\n\s*/g, ' ').replace(/\.$/, '')

const takesValue = ({ required, optional }: Option): boolean => required || optional
const isPath = ({ flags }: Option): boolean => /[<[](file|path|folder)[\]>]/.test(flags)
const flagsOf = ({ short, long }: Option): string[] => [...(short ? [short] : []), long!]
const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`

/** The options of a command that have values of their own, and these. */
function valuedBy({ name, options }: Described): { option: Option; values: Values }[] {
  return options.flatMap(option => {
    const values = valuesOf(name, option.long!)
    return values === null ? [] : [{ option, values }]
  })
}

/** Words that the first argument may be, beside paths. */
function choicesOf({ name, args }: Described, all: Described[]): readonly string[] {
  return name === 'help' ? all.map(({ name }) => name) : (args[0]?.argChoices ?? [])
}

export const completionScript = (shell: 'bash' | 'zsh' | 'fish', program: Command): string =>
  ({ bash, zsh, fish })[shell](describe(program))

function bash(all: Described[]): string {
  const cases = all.map(command => {
    const { name, options, volumesAt } = command
    const valued = options.filter(takesValue).flatMap(flagsOf)
    return `      ${name}) options='${options.flatMap(flagsOf).join(' ')}' valued=' ${valued.join(' ')} ' volumes=' ${volumesAt.join(' ')} ' choices='${choicesOf(command, all).join(' ')}' ;;`
  })
  const values = all.flatMap(command =>
    valuedBy(command).map(({ option, values }) => {
      const of = flagsOf(option).map(flag => `'${command.name} ${flag}'`)
      const kind = `kind=${values.kind}`
      const words = values.kind === 'volume' ? '' : ` choices='${values.words.join(' ')}'`
      return `    ${of.join(' | ')}) ${kind}${words} ;;`
    }),
  )
  return `# bash completion of thinfs, by: thinfs completion bash
_thinfs() {
  local line=\${COMP_LINE:0:COMP_POINT} cur='' command='' pool='' value='' kind='' place=0 word head
  local options='--help --version' valued='' volumes='' choices='${all.map(({ name }) => name).join(' ')}'
  local -a words
  COMPREPLY=()
  # Words are what blanks separate: readline would split web@monday.
  read -ra words <<< "$line"
  [[ $line == *[[:space:]] ]] || { cur=\${words[-1]}; unset 'words[-1]'; }
  for word in "\${words[@]:1}"; do
    if [[ $value ]]; then value=''
    elif [[ $word == -* ]]; then [[ $valued == *" $word "* ]] && value=$word
    elif [[ $command ]]; then ((++place == 1)) && pool=\${word/#\\~/$HOME}
    else
      command=$word
      case $command in
${cases.join('\n')}
      esac
    fi
  done
  [[ $cur == --*=* ]] && value=\${cur%%=*} cur=\${cur#*=}
  ((++place > 1)) && choices=''
  if [[ $value ]]; then
    choices=''
    case "$command $value" in
${values.join('\n')}
    esac
    if [[ $kind == list ]]; then
      head=\${cur%"\${cur##*,}"}
      choices=\${choices:+$head\${choices// / $head}}
    fi
    [[ $kind ]] || return
  elif [[ $cur == -* ]]; then choices=$options
  elif [[ $volumes == *" $place "* ]]; then kind=volume
  fi
  if [[ $kind == volume ]]; then
    while IFS= read -r word; do
      [[ $word == "$cur"* ]] && COMPREPLY+=("$(printf %q "$word")")
    done < <(thinfs list "$pool" --noheadings -o name 2> /dev/null)
  fi
  [[ $choices ]] && COMPREPLY=($(compgen -W "$choices" -- "$cur"))
  head=\${cur%"\${cur##*[=:@]}"}
  COMPREPLY=("\${COMPREPLY[@]#"$head"}")
}
complete -o bashdefault -o default -F _thinfs thinfs`
}

function zsh(all: Described[]): string {
  const text = (description: string): string => lineOf(description).replace(/[[\]\\]/g, '\\$&')
  const optionSpecs = (name: string, option: Option): string[] => {
    const value = takesValue(option) ? `:value:${zshValues(name, option)}` : ''
    const flags = flagsOf(option)
    const others = flags.length > 1 && value === '' ? `(${flags.join(' ')})` : ''
    const many = value === '' ? '' : '*'
    return flags.map(flag => quote(`${many}${others}${flag}[${text(option.description)}]${value}`))
  }
  const cases = all.map(command => {
    const { name, options, args, volumesAt } = command
    const choices = choicesOf(command, all)
    const argSpecs = args.map((argument, i) => {
      const what = argument.name().toLowerCase()
      const action = volumesAt.includes(i + 1)
        ? '->volumes'
        : i === 0 && choices.length > 0
          ? `(${choices.join(' ')})`
          : '_files'
      return quote(`${argument.variadic ? '*' : i + 1}:${what}:${action}`)
    })
    const specs = [...options.flatMap(option => optionSpecs(name, option)), ...argSpecs]
    return `        ${name}) _arguments ${specs.join(' \\\n          ')} ;;`
  })
  return `#compdef thinfs
# zsh completion of thinfs, by: thinfs completion zsh
_thinfs() {
  local context state line curcontext=$curcontext
  typeset -A opt_args
  local -a commands names
  commands=(
${all.map(({ name, description }) => `    ${quote(`${name}:${description}`)}`).join('\n')}
  )
  _arguments -C '(- *)'{-h,--help}'[show help]' '(- *)'{-V,--version}'[show the version]' \\
    '1:command:->command' '*::argument:->argument'
  case $state in
    command) _describe command commands ;;
    argument)
      case $words[1] in
${cases.join('\n')}
      esac
      if [[ $state == volumes ]]; then
        names=(\${(f)"$(thinfs list \${~line[1]} --noheadings -o name 2> /dev/null)"})
        compadd -a names
      fi ;;
  esac
}
if [[ \${funcstack[1]} == _thinfs ]]; then _thinfs "$@"; else compdef _thinfs thinfs; fi`
}

/** The action by which _arguments completes the value of an option. */
function zshValues(name: string, option: Option): string {
  const values = valuesOf(name, option.long!)
  switch (values?.kind) {
    case 'one':
      return `(${values.words.join(' ')})`
    case 'list':
      return `_sequence compadd - ${values.words.join(' ')}`
    case 'volume':
      return '->volumes'
    default:
      return isPath(option) ? '_files' : ' '
  }
}

/** The words by which fish completes the value of an option. */
function fishValues(name: string, option: Option): string {
  const values = valuesOf(name, option.long!)
  switch (values?.kind) {
    case 'one':
      return ` -x -a '${values.words.join(' ')}'`
    case 'list':
      return ` -x -a '(__thinfs_list ${values.words.join(' ')})'`
    case 'volume':
      return " -x -a '(__thinfs_volumes)'"
    default:
      return isPath(option) ? ' -r' : ' -x'
  }
}

function fish(all: Described[]): string {
  const lines = all.flatMap(command => {
    const { name, description, options, volumesAt } = command
    const is = `__fish_seen_subcommand_from ${name}`
    const choices = choicesOf(command, all)
    return [
      `complete -c thinfs -n __fish_use_subcommand -f -a ${name} -d ${fishQuote(description)}`,
      ...options.map(option => {
        const short = option.short ? ` -s ${option.short.slice(1)}` : ''
        const value = takesValue(option) ? fishValues(name, option) : ''
        const what = fishQuote(lineOf(option.description))
        return `complete -c thinfs -n '${is}'${short} -l ${option.long!.slice(2)}${value} -d ${what}`
      }),
      ...(choices.length > 0 ? [`complete -c thinfs -n '${is}' -f -a '${choices.join(' ')}'`] : []),
      ...(volumesAt.length > 0
        ? [
            `complete -c thinfs -n '${is}; and contains (__thinfs_place) ${volumesAt.join(' ')}' -f -a '(__thinfs_volumes)'`,
          ]
        : []),
    ]
  })
  return `# fish completion of thinfs, by: thinfs completion fish
function __thinfs_words
    string match --invert --entire --regex '^-' -- (commandline -opc)
end
# Which argument of the command the cursor is at; the pool is at 1.
function __thinfs_place
    math (count (__thinfs_words)) - 1
end
# Words that a list with commas between may go on with.
function __thinfs_list
    set -l head (commandline -ct | string replace --regex '^--[^=]*=' '' | string replace --regex '[^,]*$' '')
    printf '%s\\n' $head$argv
end
function __thinfs_volumes
    set -l words (__thinfs_words)
    thinfs list (string replace --regex '^~' $HOME -- $words[3]) --noheadings -o name 2>/dev/null
end
${lines.join('\n')}`
}

const fishQuote = (text: string): string => `'${text.replace(/[\\']/g, '\\$&')}'`
