"""Completion scripts for bash, zsh and fish, made from the parser itself.

The scripts are static: a shell that started Python at every key would be slow.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class _Option:
    flags: tuple[str, ...]
    help: str
    takes_value: bool
    choices: tuple[str, ...]
    is_file: bool


@dataclass(frozen=True)
class _Command:
    path: tuple[str, ...]
    options: tuple[_Option, ...]
    words: tuple[tuple[str, str], ...]  # subcommands or choices that may follow, with help


def script(shell: str, parser: argparse.ArgumentParser) -> str:
    """The completion script of a shell."""
    commands = list(_walk(parser, ()))
    return {"bash": _bash, "zsh": _zsh, "fish": _fish}[shell](commands)


def _walk(parser: argparse.ArgumentParser, path: tuple[str, ...]) -> Iterator[_Command]:
    options: list[_Option] = []
    words: list[tuple[str, str]] = []
    below: list[tuple[str, argparse.ArgumentParser]] = []
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            words += [(choice.dest, choice.help or "") for choice in action._choices_actions]
            below += action.choices.items()
        elif action.option_strings:
            choices = tuple(str(choice) for choice in action.choices or ())
            is_file = action.metavar == "FILE"
            flags = tuple(action.option_strings)
            options.append(_Option(flags, action.help or "", action.nargs != 0, choices, is_file))
        elif action.choices:
            words += [(str(choice), action.help or "") for choice in action.choices]
    yield _Command(path, tuple(options), tuple(words))
    for name, child in below:
        yield from _walk(child, (*path, name))


def _bash(commands: list[_Command]) -> str:
    cases = []
    values = []
    for command in commands:
        words = [word for word, _ in command.words] + [flag for option in command.options for flag in option.flags]
        cases.append(f'    "{" ".join(command.path)}") words="{" ".join(words)}" ;;')
    for flag, option in sorted({flag: o for c in commands for o in c.options for flag in o.flags}.items()):
        if option.is_file:
            values.append(f'    {flag}) COMPREPLY=($(compgen -f -- "$current")); return ;;')
        elif option.takes_value:
            values.append(
                f'    {flag}) COMPREPLY=($(compgen -W "{" ".join(option.choices)}" -- "$current")); return ;;'
            )
    names = "|".join(sorted({word for command in commands if command.path for word in command.path}))
    return f"""# bash completion of onlooker: eval "$(onlooker completion bash)"
_onlooker() {{
  local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" path="" words="" word
  COMPREPLY=()
  case "$previous" in
{chr(10).join(values)}
  esac
  for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$word" in
    --) COMPREPLY=($(compgen -c -- "$current")); return ;;
    {names}) path="${{path:+$path }}$word" ;;
    esac
  done
  case "$path" in
{chr(10).join(cases)}
  esac
  COMPREPLY=($(compgen -W "$words" -- "$current"))
}}
complete -F _onlooker onlooker
"""


def _zsh(commands: list[_Command]) -> str:
    cases = []
    for command in commands:
        lines = [f"'{word}:{_plain(text)}'" for word, text in command.words]
        lines += [f"'{flag}:{_plain(option.help)}'" for option in command.options for flag in option.flags]
        cases.append(f'    "{" ".join(command.path)}") found=({" ".join(lines)}) ;;')
    values = [
        f"    {flag}) {'_files' if option.is_file else 'compadd -- ' + ' '.join(option.choices)}; return ;;"
        for flag, option in sorted({flag: o for c in commands for o in c.options for flag in o.flags}.items())
        if option.takes_value and (option.is_file or option.choices)
    ]
    names = "|".join(sorted({word for command in commands if command.path for word in command.path}))
    return f"""#compdef onlooker
# zsh completion of onlooker: source <(onlooker completion zsh)
_onlooker() {{
  local path_="" word
  local -a found
  case "$words[CURRENT-1]" in
{chr(10).join(values)}
  esac
  for word in "${{words[@]:1:$((CURRENT-2))}}"; do
    case "$word" in
    --) _command_names; return ;;
    {names}) path_="${{path_:+$path_ }}$word" ;;
    esac
  done
  case "$path_" in
{chr(10).join(cases)}
  esac
  _describe onlooker found
}}
compdef _onlooker onlooker
"""


def _fish(commands: list[_Command]) -> str:
    lines = ["# fish completion of onlooker: onlooker completion fish | source", "complete -c onlooker -f"]
    for command in commands:
        following = [word for word, _ in command.words]
        seen = "; and ".join(f"__fish_seen_subcommand_from {word}" for word in command.path)
        none = f"not __fish_seen_subcommand_from {' '.join(following)}" if following else ""
        condition = "; and ".join(part for part in (seen, none) if part)
        start = f"complete -c onlooker -n '{condition}'" if condition else "complete -c onlooker"
        lines += [f"{start} -a {word} -d '{_plain(text)}'" for word, text in command.words]
        for option in command.options:
            names = " ".join(f"-l {f[2:]}" if f.startswith("--") else f"-s {f[1:]}" for f in option.flags)
            value = " -r -F" if option.is_file else f" -x -a '{' '.join(option.choices)}'" if option.takes_value else ""
            lines.append(f"{start} {names}{value} -d '{_plain(option.help)}'")
    return "\n".join(lines) + "\n"


def _plain(text: str) -> str:
    """Help without the characters that mean something to the shells' completion."""
    return text.replace("'", "").replace(":", " -").replace("`", "").replace("%%", "%")
