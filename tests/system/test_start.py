"""What a whole start imports, and that nothing is imported once pasta is connected."""

import pytest

from start_modules import DEAR, RUNNING, imported, ours, standard
from system.topology import Pasta
from system.users import only_unprivileged

pytestmark = [only_unprivileged, pytest.mark.release]

OURS = {
    "bucatini.cli.getopt",
    "bucatini.cli.options",
    "bucatini.cli.pasta",
    "bucatini.errors",
}


@pytest.fixture
def found(pasta: Pasta) -> set[str]:
    """Modules imported by pasta and by the processes that it forks, up to the exec of the command."""
    environment = {"PYTHONPROFILEIMPORTTIME": "1", "PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    result = pasta.run("--config-net", "-t", "8080", command=["true"], env=environment)
    return imported(result.stderr)


def test_a_start_costs_no_dear_module(found: set[str]) -> None:
    assert not (found | standard(found)) & DEAR


def test_a_start_costs_only_what_is_listed(found: set[str]) -> None:
    bare = {
        "abc",
        "codecs",
        "encodings",
        "genericpath",
        "io",
        "os",
        "posixpath",
        "site",
        "stat",
        "marshal",
        "posix",
        "time",
        "zipimport",
        "winreg",
    }
    assert standard(found) - bare <= RUNNING


def test_a_start_imports_these_modules_of_ours(found: set[str]) -> None:
    assert ours(found) >= OURS
