"""The command `pasta` up to where it would look at the host: what it prints where, and its status."""

import os
import subprocess
import sys
from collections.abc import Callable

import pytest

from bucatini import __version__
from bucatini.cli.usage import usage

PASTA = [sys.executable, "-c", "import sys; from bucatini.cli.pasta import main; sys.exit(main())"]


def pasta(*arguments: str | bytes, closed: Callable[[], None] | None = None) -> tuple[int, str, str]:
    result = subprocess.run([*PASTA, *arguments], capture_output=True, text=True, preexec_fn=closed)
    return result.returncode, result.stdout, result.stderr


@pytest.mark.parametrize(
    "arguments", [["-h"], ["--help"], ["--splice-only", "-T", "auto", "--hel"], ["-qh", "--nosuch"]]
)
def test_help_is_on_standard_output(arguments: list[str]) -> None:
    assert pasta(*arguments) == (0, usage(), "")


@pytest.mark.parametrize("arguments", [["--version"], ["--host-lo-to-ns-lo", "--version"], ["-4", "-6", "--version"]])
def test_the_version_is_on_standard_output_after_other_options_too(arguments: list[str]) -> None:
    status, out, err = pasta(*arguments)
    assert (status, out.splitlines()[0], err) == (0, f"pasta {__version__}", "")
    assert "BSD-3-Clause" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--map-guest-addrx", "169.254.1.2"], "pasta: unrecognized option '--map-guest-addrx'"),
        (["-qx"], "pasta: invalid option -- 'x'"),
        (["--mtu"], "pasta: option '--mtu' requires an argument"),
        (["-qm"], "pasta: option requires an argument -- 'm'"),
        (["--quiet=yes"], "pasta: option '--quiet' doesn't allow an argument"),
        (["--vhost-user"], "pasta: unrecognized option '--vhost-user'"),
    ],
)
def test_what_is_no_option_is_named_before_the_usage(arguments: list[str], message: str) -> None:
    assert pasta(*arguments) == (1, "", f"{message}\n{usage()}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "1"], "pasta: --mtu: invalid value '1': not an MTU: 0, or 68 to 65520"),
        (["-c", "/x"], "pasta: --conf-path: changing forwards while running is not there yet"),
        ([b"-H", b"\xff"], r"pasta: --hostname: invalid value '\udcff': not a domain name"),
        (["--netns", "/x", "ls"], "pasta: --netns: '/x' does not go with the command 'ls'"),
    ],
)
def test_what_cannot_be_is_one_line(arguments: list[str | bytes], message: str) -> None:
    assert pasta(*arguments) == (1, "", f"{message}\n")


def test_L9_a_closed_standard_output_is_no_error() -> None:
    def close() -> None:
        for fd in range(3):
            os.close(fd)

    assert pasta("--version", closed=close) == (0, "", "")
    assert pasta("-m", "1", closed=close) == (1, "", "")
    assert pasta("--nosuch", closed=close) == (1, "", "")
