"""What a process gives up before it serves."""

import os

from bucatini.errors import HostError
from bucatini.host import kernel


def own_user_namespace() -> None:
    """Move to a user namespace in which there is nobody but us, with no capability outside of it.

    Raises:
        HostError: the host allows no user namespaces, or not to us.
    """
    uid, gid = os.geteuid(), os.getegid()
    kernel.be_dumpable()  # a change of user before has taken /proc/self away
    try:
        kernel.unshare(kernel.CLONE_NEWUSER, "make a user namespace")
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            try:
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            except OSError as error:
                raise HostError(f"write /proc/self/{name}", error.errno or 0) from None
    finally:
        kernel.be_undumpable()
    kernel.drop_capabilities()  # those that the new namespace gave us
