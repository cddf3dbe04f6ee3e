"""The system calls that each profile of the filter lets through. Made by tools/syscalls, not by hand."""

from __future__ import annotations

# fmt: off
DECLARED: dict[str, tuple[str, ...]] = {
    "auto": (
        "bind", "close", "fstat", "ioctl", "listen", "newfstatat", "pread64", "recvfrom", "sendto", "setsockopt",
        "socket",
    ),
    "binder": (
        "bind", "close", "listen", "poll", "ppoll", "recvfrom", "sendmsg", "setsockopt", "socket",
    ),
    "common": (
        "brk", "close", "exit_group", "futex", "madvise", "mmap", "mprotect", "mremap", "munmap", "poll", "ppoll",
        "restart_syscall", "write",
    ),
    "lookout": (
        "clock_gettime", "close", "newfstatat", "openat", "poll", "ppoll", "read", "recvfrom", "sendto", "stat",
        "write",
    ),
    "maker": (
        "bind", "close", "listen", "openat", "poll", "ppoll", "recvfrom", "sendmsg", "setsockopt", "socket",
    ),
    "passt": (
        "accept4", "close", "eventfd2", "getsockname", "getsockopt", "ioctl", "poll", "ppoll", "recvfrom", "sendto",
        "setsockopt",
    ),
    "pasta": (
        "bind", "clock_gettime", "close", "connect", "epoll_ctl", "epoll_pwait2", "fcntl", "getsockname", "pipe2",
        "poll", "ppoll", "read", "recvfrom", "recvmsg", "sendto", "setsockopt", "shutdown", "socket", "splice", "wait4",
        "write", "writev",
    ),
    "serve": (
        "accept4", "bind", "clock_gettime", "close", "connect", "dup2", "dup3", "epoll_ctl", "epoll_pwait",
        "epoll_wait", "eventfd2", "fstat", "ftruncate", "getpid", "getrandom", "getsockname", "getsockopt", "ioctl",
        "newfstatat", "poll", "ppoll", "pread64", "read", "recvfrom", "recvmmsg", "recvmsg", "rt_sigreturn", "sendmsg",
        "sendto", "setsockopt", "shutdown", "socket", "write",
    ),
}
