"""The end of a namespace is noticed; plain files stand in for it where only the name matters."""

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bucatini.errors import HostError
from bucatini.guest import watch as module
from bucatini.guest.watch import NamespaceWatch


def readable(watch: NamespaceWatch, timeout: int = 10000) -> bool:
    poll = select.poll()
    poll.register(watch.fd, select.POLLIN)
    return bool(poll.poll(timeout))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    made = tmp_path / "name"
    made.touch()
    return made


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    process = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.communicate()


def test_a_deleted_name_is_noticed_and_another_one_is_not(path: Path) -> None:
    watch = NamespaceWatch(str(path))
    (path.parent / "other").touch()
    (path.parent / "other").unlink()
    assert readable(watch)
    assert not watch.gone()
    assert not readable(watch, 0)
    path.unlink()
    assert readable(watch)
    assert watch.gone()
    watch.close()


@pytest.mark.parametrize("how", ["rename", "replace"])
def test_a_name_that_means_something_else_is_gone(path: Path, how: str) -> None:
    watch = NamespaceWatch(str(path))
    if how == "rename":
        path.rename(path.with_name("elsewhere"))
    else:
        _another(path).replace(path)
    assert watch.gone()
    watch.close()


def _another(path: Path) -> Path:
    other = path.with_name("another")
    other.touch()
    return other


def test_a_relative_path_outlives_a_change_of_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    watch = NamespaceWatch("name")
    monkeypatch.chdir("/")
    assert not watch.gone()
    path.unlink()
    assert watch.gone()
    watch.close()


def test_L11_at_the_limit_of_inotify_it_is_looked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> int:
        raise HostError("make an inotify descriptor", 24)

    monkeypatch.setattr(module.kernel, "inotify_watch", full)
    watch = NamespaceWatch(str(path))
    assert (watch.fd, watch.poll_ns) == (-1, module.POLL_NS)
    assert not watch.gone()
    path.unlink()
    assert watch.gone()


@pytest.mark.parametrize("link", [False, True])
def test_L11_the_end_of_a_process_is_noticed_at_once(
    sleeper: "subprocess.Popen[bytes]", tmp_path: Path, link: bool
) -> None:
    target = f"/proc/{sleeper.pid}/ns/net"
    name = tmp_path / "link"
    name.symlink_to(target)
    watch = NamespaceWatch(str(name) if link else target)
    assert watch.poll_ns <= 1_000_000_000
    assert not watch.gone()
    assert not readable(watch, 0)
    sleeper.kill()
    assert readable(watch)
    assert watch.gone()
    watch.close()


def test_a_process_that_may_not_be_looked_at_any_longer_is_not_gone(
    sleeper: "subprocess.Popen[bytes]", monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = NamespaceWatch(f"/proc/{sleeper.pid}/ns/net")

    def refused(*arguments: object, **options: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "stat", refused)
    assert not watch.gone()
    sleeper.kill()
    assert readable(watch)
    assert watch.gone()
    watch.close()


def test_a_folder_that_may_not_be_looked_into_any_longer_tells_by_its_events(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = NamespaceWatch(str(path))

    def refused(*arguments: object, **options: object) -> os.stat_result:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(module.os, "stat", refused)
    _another(path).unlink()
    assert not watch.gone()
    path.unlink()
    assert watch.gone()
    watch.close()


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="none"):
        NamespaceWatch(str(tmp_path / "none"))
