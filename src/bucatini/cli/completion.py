"""Completion for bash, rendered from the option table: `python -m bucatini.cli.completion` writes scripts.

`source <(python -m bucatini.cli.completion)` is enough to try it. Behind the first operand the command's own
completion takes over.
"""

from __future__ import annotations

import sys

from bucatini.cli.options import NAMES, in_mode

SCRIPT = r"""# Completion of @PROGRAM@(1) for bash, made by `python -m bucatini.cli.completion`
_@PROGRAM@()
{
    local cur=${COMP_WORDS[COMP_CWORD]} index=1 word waiting=
    COMPREPLY=()
    # Whose value stands at the cursor, and whether there was an operand before it
    while (( index < COMP_CWORD )); do
        word=${COMP_WORDS[index]}
        if [[ $waiting ]]; then
            [[ $word == = ]] || waiting=
        elif [[ $word == -- ]]; then
            _@PROGRAM@_operand $(( index + 1 )); return
        elif [[ $word == -?* ]]; then
            case $word in
                @VALUED@) waiting=$word ;;
            esac
        elif [[ $word != = ]]; then
            _@PROGRAM@_operand "$index"; return
        fi
        (( index++ ))
    done
    [[ $waiting && $cur == = ]] && cur=
    case $waiting in
        @FILES@) mapfile -t COMPREPLY < <(compgen -f -- "$cur"); compopt -o filenames 2> /dev/null; return ;;
        @INTERFACES@) mapfile -t COMPREPLY < <(compgen -W "$(cd /sys/class/net && echo *)" -- "$cur"); return ;;
        @NONE@) mapfile -t COMPREPLY < <(compgen -W none -- "$cur"); return ;;
        @PORTS@) mapfile -t COMPREPLY < <(compgen -W "none all" -- "$cur"); return ;;
        ?*) return ;;
    esac
    if [[ $cur == -* ]]; then
        mapfile -t COMPREPLY < <(compgen -W "@NAMES@" -- "$cur")
    else
        mapfile -t COMPREPLY < <(compgen -c -- "$cur")
    fi
}
_@PROGRAM@_operand()
{
    if declare -F _command_offset > /dev/null; then
        _command_offset "$1"
    else
        mapfile -t COMPREPLY < <(compgen -f -- "${COMP_WORDS[COMP_CWORD]}")
    fi
}
complete -F _@PROGRAM@ @PROGRAM@
"""


def render(mode: int) -> str:
    """Return the script of a program."""
    kinds: dict[str, list[str]] = {"FILES": [], "INTERFACES": [], "NONE": [], "PORTS": [], "VALUED": [], "NAMES": []}
    for option in in_mode(mode):
        if option.hidden:
            continue
        names = [f"--{option.long}", *([f"-{option.short}"] if option.short else [])]
        kinds["NAMES"] += names
        if not option.metavar:
            continue
        kinds["VALUED"] += names
        if option.metavar.startswith(("PATH", "FILE")):
            kinds["FILES"] += names
        elif option.metavar == "NAME" and option.dest in {"interface", "outbound_if4", "outbound_if6"}:
            kinds["INTERFACES"] += names
        elif option.metavar.endswith("|none"):
            kinds["NONE"] += names
        elif option.metavar == "SPEC":
            kinds["PORTS"] += names
    script = SCRIPT.replace("@PROGRAM@", NAMES[mode])
    for kind, names in kinds.items():
        script = script.replace(f"@{kind}@", (" " if kind == "NAMES" else "|").join(names))
    return script


if __name__ == "__main__":
    sys.stdout.write("".join(render(mode) for mode in NAMES))
