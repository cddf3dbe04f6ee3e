"""The front: finding a subcommand."""

import subprocess
import sys

import pytest

from bucatini import __version__
from bucatini.cli import bucatini, demo
from bucatini.errors import HostError


def test_the_version_is_on_standard_output(capsys: pytest.CaptureFixture[str]) -> None:
    assert bucatini.main(["--version"]) == 0
    assert capsys.readouterr().out == f"bucatini {__version__}\n"


def test_help_names_the_commands(capsys: pytest.CaptureFixture[str]) -> None:
    assert bucatini.main(["--help"]) == 0
    text = capsys.readouterr().out
    assert "demo" in text
    assert "doctor" in text


@pytest.mark.parametrize("arguments", [[], ["nonsense"]])
def test_without_a_command_that_it_knows_it_fails(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert bucatini.main(arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Usage" in captured.err
    assert all(argument in captured.err for argument in arguments)


@pytest.mark.parametrize("command", ["demo", "doctor"])
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bucatini.main([command, "--help"]) == 0
    assert f"Usage: bucatini {command}" in capsys.readouterr().out


def test_an_error_of_ours_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(_: list[str]) -> int:
        raise HostError("open a thing", 2)

    monkeypatch.setattr(demo, "main", fail)
    assert bucatini.main(["demo"]) == 1
    assert capsys.readouterr().err == "bucatini: open a thing: No such file or directory\n"


def test_a_reader_that_leaves_early_is_no_error() -> None:
    code = "import sys; from bucatini.cli.bucatini import main; sys.exit(main(['doctor']))"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert b"Traceback" not in process.stderr.read()
