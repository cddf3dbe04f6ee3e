"""Our getopt against glibc's getopt_long, by way of util-linux's getopt(1)."""

import shlex
import shutil
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

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
    """Undo what getopt(1) does differently: it repeats short options as they were given."""
    short = {f"-{spec.short}": spec for spec in SPECS if spec.short}
    named = {f"--{spec.long}": spec for spec in SPECS} | short
    result: list[str] = []
    at = 0
    while words[at] != "--":
        spec = named[words[at]]
        result.append(f"--{spec.long}")
        if spec.takes_value:
            at += 1
            result.append(words[at])
        at += 1
    return result + words[at:]


def agree(line: list[str]) -> None:
    """Compare what we make of a line with what glibc makes of it: values, operands, and the words of an error."""
    program = shutil.which("getopt")
    if program is None:
        pytest.skip("getopt(1) of util-linux is not installed")
    shorts = "+" + "".join(spec.short + (":" if spec.takes_value else "") for spec in SPECS if spec.short)
    longs = ",".join(spec.long + (":" if spec.takes_value else "") for spec in SPECS)
    command = [program, "-n", "pasta", "-o", shorts, "-l", longs, "--", *line]
    theirs = subprocess.run(command, capture_output=True, text=True, check=False, env={"LC_ALL": "C"})
    if theirs.returncode:
        with pytest.raises(GetoptError) as caught:
            ours(line)
        assert theirs.stderr.splitlines()[0] == f"pasta: {caught.value}"
    else:
        assert long_names(shlex.split(theirs.stdout)) == ours(line)


@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_the_command_line_is_read_as_glibc_reads_it(line: list[str]) -> None:
    agree(line)


PIECES = ["-", "--", "-d", "-q", "-m", "-m7", "-x", "-dm", "-qd7", "7", "cmd", "=", "--=", "--m", "--mtu", "--n"]
PIECES += ["--netns", "--netns-", "--netns-o", "--netns=7", "--no-dhcp", "--no-dhcpv", "--no-d=7", "--quiet=", "--q"]
WORDS = st.one_of(
    st.sampled_from(PIECES),
    st.text("-=dmnqorx7", min_size=1, max_size=6),
    st.builds(
        lambda spec, cut, rest: f"--{spec.long}"[:cut] + rest,
        st.sampled_from(SPECS),
        st.integers(min_value=2, max_value=13),
        st.sampled_from(["", "", "=", "=7", "x"]),
    ),
)


@settings(deadline=None)
@given(st.lists(WORDS, max_size=5))
def test_any_command_line_is_read_as_glibc_reads_it(line: list[str]) -> None:
    agree(line)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["--x"], "unrecognized option '--x'"),
        (["-x"], "invalid option -- 'x'"),
        (["--mtu"], "option '--mtu' requires an argument"),
        (["-m"], "option requires an argument -- 'm'"),
        (["--quiet=1"], "option '--quiet' doesn't allow an argument"),
        (["--no-d"], "option '--no-d' is ambiguous; possibilities: '--no-dhcp' '--no-dhcpv6'"),
    ],
)
def test_the_messages_are_those_that_callers_look_for(line: list[str], message: str) -> None:
    with pytest.raises(GetoptError) as caught:
        ours(line)
    assert str(caught.value) == message


SECOND_NAMES = (
    Spec("socket", "s", True),
    Spec("socket-path", "", True, same_as="socket"),
    Spec("search", "", True),
    Spec("no-tcp", "", False),
    Spec("no-isolation", "", False, hidden=True),
)


@pytest.mark.parametrize("word", ["--sock", "--so", "--socket"])
def test_two_names_of_one_option_are_not_ambiguous(word: str) -> None:
    assert list(getopt([word, "/x"], SECOND_NAMES)) == [("socket", "/x")]


def test_a_second_name_is_found_by_what_is_its_own() -> None:
    assert list(getopt(["--socket-p", "/x"], SECOND_NAMES)) == [("socket-path", "/x")]


def test_among_other_options_one_of_two_names_is_shown() -> None:
    """As glibc does: names of which all else is the same are one possibility."""
    with pytest.raises(GetoptError) as caught:
        list(getopt(["--s", "/x"], SECOND_NAMES))
    assert str(caught.value) == "option '--s' is ambiguous; possibilities: '--socket' '--search'"


def test_what_is_hidden_is_found_by_its_full_name_alone() -> None:
    assert list(getopt(["--no-", "--no-isolation"], SECOND_NAMES)) == [("no-tcp", ""), ("no-isolation", "")]
    with pytest.raises(GetoptError, match=r"^unrecognized option '--no-i'$"):
        list(getopt(["--no-i"], SECOND_NAMES))


def test_a_value_may_be_empty() -> None:
    assert list(getopt(["--mtu=", "-m", "", "--mtu", ""], SPECS)) == [("mtu", "")] * 3


def test_options_before_an_error_are_handed_out_first() -> None:
    options = getopt(["-d", "--nosuch"], SPECS)
    assert next(options) == ("debug", "")
    with pytest.raises(GetoptError):
        next(options)
