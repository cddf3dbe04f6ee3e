"""Completion, as bash does it."""

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from bucatini.cli.completion import render
from bucatini.cli.options import NAMES, PASST, PASTA, in_mode


def completed(*words: str, mode: int = PASTA) -> list[str]:
    """What bash offers for the last of the words."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("bash is not installed")
    name = NAMES[mode]
    script = f"{render(mode)}\nCOMP_WORDS=({shlex.join([name, *words])})\nCOMP_CWORD={len(words)}\n_{name}\n"
    script += 'printf "%s\\n" "${COMPREPLY[@]}"\n'
    result = subprocess.run([bash, "--norc", "-c", script], capture_output=True, text=True, check=True)
    assert result.stderr == ""
    return result.stdout.split()


@pytest.mark.parametrize("mode", [PASTA, PASST])
def test_every_option_is_offered(mode: int) -> None:
    assert set(completed("--", mode=mode)) == {f"--{option.long}" for option in in_mode(mode) if not option.hidden}


def test_a_beginning_is_completed() -> None:
    assert completed("--no-spl") == ["--no-splice"]


def test_values_are_offered_for_what_they_are(tmp_path: Path) -> None:
    (tmp_path / "x.pid").touch()
    assert completed("-q", "--pid", f"{tmp_path}/x") == [f"{tmp_path}/x.pid"]
    assert completed("--pid", "=", f"{tmp_path}/x") == [f"{tmp_path}/x.pid"]
    assert completed("-i", "lo") == ["lo"]
    assert completed("-t", "") == ["none", "all"]
    assert completed("--dns", "=") == ["none"]
    assert completed("--mtu", "") == []


def test_behind_a_command_its_own_words_are_completed(tmp_path: Path) -> None:
    (tmp_path / "--no-file").touch()
    assert completed("cat", f"{tmp_path}/--no") == [f"{tmp_path}/--no-file"]
    assert completed("--", "cat", "--no-spl") == []
    assert "bash" in completed("--mtu", "1500", "bas")
