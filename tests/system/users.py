"""The two identities that the programs are tested with: root, and a user without any privilege."""

import pwd
import shutil
import subprocess
from typing import NamedTuple

import pytest

UNPRIVILEGED = "bucatini-test"


class User(NamedTuple):
    """Somebody who runs the programs."""

    name: str
    uid: int
    gid: int
    granted: str = ""  # a capability, as a service manager may grant it

    @property
    def prefix(self) -> tuple[str, ...]:
        """The command that becomes this user and then runs what follows it."""
        if self.uid == 0:
            return ()
        become = ("setpriv", f"--reuid={self.uid}", f"--regid={self.gid}", "--clear-groups")
        grant = (
            [f"--{kind}-caps=+{self.granted}" for kind in ("inh", "ambient")] if self.granted else ["--inh-caps=-all"]
        )
        return (*become, *grant, "env", "HOME=/tmp", f"USER={self.name}", f"LOGNAME={self.name}")


ROOT = User("root", 0, 0)


def unprivileged() -> User:
    """The user without privileges, made if the machine has none of that name."""
    try:
        entry = pwd.getpwnam(UNPRIVILEGED)
    except KeyError:
        shell = shutil.which("bash") or "/bin/sh"
        subprocess.run(["useradd", "--system", "--create-home", "--shell", shell, UNPRIVILEGED], check=True)
        entry = pwd.getpwnam(UNPRIVILEGED)
    return User(entry.pw_name, entry.pw_uid, entry.pw_gid)


# For tests that say nothing about the other identity.
only_root = pytest.mark.parametrize("user", ["root"], indirect=True)
only_unprivileged = pytest.mark.parametrize("user", ["unprivileged"], indirect=True)
