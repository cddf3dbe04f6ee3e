"""The manual page: complete, current, and nothing that man(1) complains about."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from bucatini.cli.manpage import escape, render
from bucatini.cli.options import NAMES, PASST, PASTA, in_mode

both = pytest.mark.parametrize("mode", [PASTA, PASST], ids=NAMES.get)


def page(mode: int) -> Path:
    """The page in the repository."""
    return Path(__file__).parents[3] / "docs" / "man" / f"{NAMES[mode]}.1"


def shown(mode: int) -> str:
    """The page as a reader sees it, without emphasis."""
    if shutil.which("man") is None or shutil.which("groff") is None:
        pytest.skip("packages man-db and groff are not installed")
    environment = {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin", "MANWIDTH": "200", "MANPAGER": "cat"}
    result = subprocess.run(
        ["man", "--warnings", "-l", "-Tutf8", str(page(mode))],
        capture_output=True,
        text=True,
        check=True,
        env=environment,
    )
    assert result.stderr == ""
    return re.sub(r".\x08|\x1b\[[0-9;]*m", "", result.stdout)


@both
def test_the_page_is_that_of_the_option_table(mode: int) -> None:
    assert page(mode).read_text() == render(mode), "run 'make man'"


@both
def test_man_has_nothing_to_complain_about_and_shows_every_option(mode: int) -> None:
    lines = [line.strip() for line in shown(mode).splitlines()]
    for option in in_mode(mode):
        if option.hidden:
            continue
        short = f"-{option.short}, " if option.short else ""
        assert f"{short}--{option.long} {option.metavar}".strip() in lines


def test_text_cannot_be_taken_for_roff() -> None:
    assert escape("a-b \\n") == "a\\-b \\en"
    assert escape(".TH") == "\\&.TH"
    assert escape("'x") == "\\&'x"
    assert escape("see --no-map-gw.") == "see \\fB\\-\\-no\\-map\\-gw\\fR."
