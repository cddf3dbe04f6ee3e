"""What a process gives up before it serves: the stages, in the order in which they must come.

The process that serves reads frames that an attacker wrote. Should one of them take it over, it finds that it can do
nothing but serve: descriptors of sockets and of the link, and the calls to use them.

1. Descriptors that were inherited are closed (`process.close_inherited`): first of all, before ours are opened.
2. Root is given up (`process.become`): when everything is bound and open that whoever started us may bind and open,
   and before namespaces are made, which belong to who makes them.
3. `own_namespaces`: users, mounts, IPC, host names and, for the background, processes. After the guest's namespaces
   were joined: to be let in there one must be in the user namespace above theirs, and this step leaves it. It needs
   no privilege and gives the rights, over our own namespaces alone, that the next step needs.
4. The background is forked (`process.Background`): who makes a PID namespace is not in it, its first child is.
5. `empty_root`: nothing is left that could be opened. All imports were done before, and what is followed in the file
   system is followed by another process (`runtime/lookout`).
6. `give_up`: capabilities, the environment, core dumps and further processes; nobody may trace us. Those of the steps
   before are no longer needed, and an exec, were there anything to execute, gives none back.
7. Landlock (`host/landlock`), a second wall in front of files, and system calls (`host/seccomp`): last, since all the
   steps before need calls that the filter forbids. From here on an undeclared call is the end of the process.

The helpers of the one that serves, which read nothing of the guest's, give up what they can (`confine`): the maker of
sockets in the guest's namespaces keeps the right to bind low ports there, the binder that on the host; the maker and
the lookout keep reading files.

Failure. What cannot be given up ends the start: there is no way to serve without, but for `--no-isolation`, which
`--help` does not show, to measure what it costs and for the sanitizers, which report by opening files.
"""

from __future__ import annotations

import errno
import os
import resource
import select
import sys

from bucatini.datapath.syscall_numbers import numbers
from bucatini.errors import HostError
from bucatini.host import kernel, landlock, seccomp

# The interpreter's and the C library's own, in every process: memory, locks, going on after a stop, the end. What else
# every process does: it tells that it is there, waits, and closes.
# syscalls common: brk mmap munmap mremap mprotect madvise futex restart_syscall exit_group write close poll ppoll

CONFINED = b"+"  # what a helper says first, `tell_confined`
CONFINED_MS = 5000  # to wait for it at most
FOLDERS = ("/tmp", "/run", "/var/tmp", "/proc", "/dev", "/etc", "/usr")  # noqa: S108 - mounted over, not used
ADVICE = "user namespaces may be switched off: see 'bucatini doctor'"
NO_PIVOT = "this root cannot be exchanged, as on an initramfs: --chroot-fallback uses chroot instead"


def own_namespaces(*, processes: bool) -> None:
    """Move to namespaces in which there is nobody but us, with no capability outside of them.

    Args:
        processes: the next child, and no other, is in a PID namespace of its own.

    Raises:
        HostError: the host allows no user namespaces, or not to us.
    """
    uid, gid = os.geteuid(), os.getegid()
    kernel.be_dumpable()  # a change of user before has taken /proc/self away
    flags = kernel.CLONE_NEWUSER | kernel.CLONE_NEWNS | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS
    try:
        kernel.unshare(flags | (kernel.CLONE_NEWPID if processes else 0), "make namespaces to serve in", ADVICE)
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            try:
                with open(f"/proc/self/{name}", "w") as file:
                    file.write(text)
            except OSError as error:
                raise HostError(f"write /proc/self/{name}", error.errno or 0, ADVICE) from None
    finally:
        kernel.be_undumpable()


def empty_root(*, chroot_fallback: bool) -> None:
    """Exchange the root for a file system without files that cannot be written to.

    Raises:
        HostError: it cannot be exchanged.
    """
    # What is mounted here must not appear outside
    kernel.mount("none", "/", None, kernel.MS_REC | kernel.MS_SLAVE)
    folder = next((path for path in FOLDERS if os.path.isdir(path)), None)
    if folder is None:
        raise HostError("find a folder to mount an empty root over", errno.ENOENT)
    flags = kernel.MS_RDONLY | kernel.MS_NOSUID | kernel.MS_NODEV | kernel.MS_NOEXEC
    kernel.mount("none", folder, "tmpfs", flags, "size=4k,nr_inodes=1,mode=0555")
    os.chdir(folder)
    try:
        kernel.change_root(numbers()["pivot_root"])
    except HostError as error:
        if error.errno != errno.EINVAL:
            raise
        if not chroot_fallback:
            raise HostError("change the root", errno.EINVAL, NO_PIVOT) from None
        os.chroot(".")  # with all descriptors of folders closed and CAP_SYS_CHROOT gone, there is no way out
        os.chdir("/")


def give_up(*capabilities: int) -> None:
    """Give up all capabilities but these, the environment, core dumps, further processes and being traced."""
    kernel.keep_capabilities(*capabilities)
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK):
        resource.setrlimit(limit, (0, 0))
    kernel.be_undumpable()
    kernel.wipe_environment()
    kernel.take_no_privileges()


def seal(*profiles: str, bind: bool, signal: bool = False, read: bool = False) -> int:
    """Put up Landlock and the filter of system calls; returns Landlock's ABI, 0: the kernel has none.

    Args:
        profiles: of the filter (`host/seccomp`).
        bind: TCP sockets will still be bound.
        signal: there is a child that is to end with us.
        read: files may still be opened, to be read.

    Raises:
        HostError: the kernel refuses.
    """
    version = landlock.restrict(bind=bind, signal=signal, read=read)
    seccomp.install("common", *profiles)
    sys.audit("bucatini.sealed", *profiles)
    return version


def confine(profile: str, *capabilities: int, bind: bool = False, read: bool = False) -> None:
    """Give up what a helper can do without, the root excepted.

    Args:
        profile: of the filter, besides the common one.
        bind: TCP sockets will still be bound.
        read: files may still be opened, to be read.

    Raises:
        HostError: the kernel refuses.
    """
    give_up(*capabilities)
    seal(profile, bind=bind, read=read)


def tell_confined(fd: int) -> None:
    """In a helper: say that it has given up what it can do without, for which readiness waits."""
    os.write(fd, CONFINED)


def await_confined(fd: int, who: str) -> None:
    """Wait until a helper has said that it is confined.

    Args:
        fd: the end of a pipe in packet mode, or of sockets that keep messages apart.
        who: the helper, for the message.

    Raises:
        HostError: it could not be confined, or did not answer.
    """
    doing = f"confine the process that {who}"
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    if not poll.poll(CONFINED_MS):
        raise HostError(doing, errno.ETIMEDOUT)
    try:
        told = os.read(fd, len(CONFINED))
    except OSError as error:
        raise HostError(doing, error.errno or 0) from None
    if told != CONFINED:
        raise HostError(doing, errno.EPIPE)
