"""A script that completes commands and options in bash and zsh."""

from collections.abc import Mapping, Sequence

_SCRIPT = """\
_lightning_tricks() {{
  local words=""
  case "${{COMP_WORDS[1]}}" in
{cases}
  esac
  if [ "$COMP_CWORD" -eq 1 ]; then words="{commands}"; fi
  COMPREPLY=($(compgen -W "$words" -- "${{COMP_WORDS[COMP_CWORD]}}"))
}}
complete -o default -F _lightning_tricks lightning-tricks
"""
# zsh reads bash's completions once it is told to.
_ZSH = "autoload -U +X compinit bashcompinit && compinit && bashcompinit\n"


def completion_script(shell: str, options: Mapping[str, Sequence[str]]) -> str:
    """Return a script to be read by the shell; jsonargparse's own never ends on types like ``nn.Module``.

    Args:
        shell: ``"bash"`` or ``"zsh"``.
        options: by command.

    Example:
        >>> "fit) words='--model --data' ;;" in completion_script("bash", {"fit": ["--model", "--data"]})
        True
    """
    cases = "\n".join(f"    {command}) words='{' '.join(names)}' ;;" for command, names in options.items())
    script = _SCRIPT.format(cases=cases, commands=" ".join(options))
    return _ZSH + script if shell == "zsh" else script
