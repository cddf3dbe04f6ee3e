"""The system calls that each profile of the filter lets through. Made by tools/syscalls, not by hand."""

from __future__ import annotations

# fmt: off
DECLARED: dict[str, tuple[str, ...]] = {
    "auto": (
        "bind", "close", "fstat", "ioctl", "listen", "newfstatat", "pread64", "recvfrom", "recvmsg", "sendto",
        "setsockopt", "socket",
    ),
    "common": (
        "brk", "clock_gettime", "close", "exit_group", "fstat", "futex", "getpid", "getrandom", "madvise", "mmap",
        "mprotect", "mremap", "munmap", "newfstatat", "poll", "ppoll", "read", "restart_syscall", "rt_sigreturn",
        "write",
    ),
    "lookout": (
        "openat", "recvfrom", "sendto", "stat",
    ),
    "maker": (
        "bind", "listen", "openat", "recvfrom", "recvmsg", "sendmsg", "sendto", "setsockopt", "socket",
    ),
    "passt": (
        "accept4", "close", "eventfd2", "fcntl", "getsockname", "getsockopt", "ioctl", "poll", "ppoll", "recvfrom",
        "sendto", "setsockopt",
    ),
    "pasta": (
        "bind", "close", "connect", "epoll_ctl", "fcntl", "getsockname", "ioctl", "pipe2", "poll", "ppoll", "read",
        "recvfrom", "recvmsg", "sendto", "setsockopt", "shutdown", "socket", "splice", "wait4", "write", "writev",
    ),
    "serve": (
        "accept4", "bind", "close", "connect", "dup2", "dup3", "epoll_ctl", "epoll_pwait", "epoll_pwait2", "epoll_wait",
        "eventfd2", "fstat", "ftruncate", "getsockname", "getsockopt", "ioctl", "newfstatat", "poll", "ppoll",
        "pread64", "read", "recvfrom", "recvmmsg", "recvmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket",
        "write",
    ),
}
