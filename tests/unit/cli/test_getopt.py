"""Our getopt against glibc's getopt_long, by way of util-linux's getopt(1)."""

import shutil
import subprocess

import pytest

from bucatini.cli.getopt import GetoptError, Spec, getopt

SPECS = (
    Spec("debug", "d", False),
    Spec("quiet", "q", False),
    Spec("mtu", "m", True),
    Spec("no-dhcp", "", False),
    Spec("no-dhcpv6", "", False),
    Spec("no-ra", "", False),
    Spec("netns", "", True),
    Spec("netns-only", "", False),
)
LINES = [
    ["-dq"],
    ["-dm1500", "x"],
    ["-dm", "1500"],
    ["-m"],
    ["-x"],
    ["-dx"],
    ["--mtu=1500"],
    ["--mtu", "1500"],
    ["--mtu"],
    ["--mt", "7"],
    ["--no-dhcp"],
    ["--no-d"],
    ["--no"],
    ["--no-r"],
    ["--netns=x", "--netns-only"],
    ["--nosuch"],
    ["--nosuch=1"],
    ["--quiet=1"],
    ["--", "-d"],
    ["-d", "cmd", "-q"],
    ["-"],
    ["--mtu="],
]


def ours(line: list[str]) -> list[str]:
    by_name = {spec.long: spec for spec in SPECS}
    words: list[str] = []
    operands: list[str] = []
    for name, value in getopt(line, SPECS):
        if not name:
            operands.append(value)
        else:
            words.append(f"--{name}")
            if by_name[name].takes_value:
                words.append(value)
    return [*words, "--", *operands]


def long_names(words: list[str]) -> list[str]:
    """getopt(1) repeats short options as they were given."""
    short = {f"-{spec.short}": f"--{spec.long}" for spec in SPECS if spec.short}
    end = words.index("--")
    return [short.get(word, word) for word in words[:end]] + words[end:]


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_command_line_is_read_as_glibc_reads_it(line: list[str]) -> None:
    program = shutil.which("getopt")
    if program is None:
        pytest.skip("getopt(1) of util-linux is not installed")
    shorts = "+" + "".join(spec.short + (":" if spec.takes_value else "") for spec in SPECS if spec.short)
    longs = ",".join(spec.long + (":" if spec.takes_value else "") for spec in SPECS)
    command = [program, "-u", "-n", "pasta", "-o", shorts, "-l", longs, "--", *line]
    theirs = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    if theirs.returncode:
        with pytest.raises(GetoptError) as caught:
            ours(line)
        assert theirs.stderr.splitlines()[0] == f"pasta: {caught.value}"
    else:
        assert long_names(theirs.stdout.split()) == [word for word in ours(line) if word]
