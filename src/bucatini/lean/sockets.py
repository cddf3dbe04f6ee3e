"""`socket` for what a start imports: the half of it that is in C.

The half in Python gives each constant an enumeration and brings selectors, for a tenth of a start. Here constants are
plain numbers; of the rest there is what is used: sockets as context managers, pairs, and descriptors as ancillary data.
"""

from __future__ import annotations

from bucatini.lean.record import TYPE_CHECKING

# Of `accept`, and of the socket that is made of its descriptor
# syscalls passt: accept4 getsockname getsockopt close

if TYPE_CHECKING:
    from socket import *  # noqa: F403
else:
    from _socket import *  # noqa: F403
    from _socket import AF_UNIX, CMSG_LEN, SCM_RIGHTS, SOCK_STREAM, SOL_SOCKET
    from _socket import socket as _socket
    from _socket import socketpair as _socketpair
    from struct import pack, unpack

    DESCRIPTOR = 4  # bytes

    class socket(_socket):  # noqa: N801 - it stands for it
        """One that a `with` closes."""

        __slots__ = ()

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.close()

        def accept(self):
            """Take a connection: its socket, and the address of its other end."""
            fd, address = self._accept()
            return socket(fileno=fd), address

    def socketpair(family=AF_UNIX, kind=SOCK_STREAM, proto=0):
        """Two sockets connected to each other."""
        return tuple(socket(fileno=end.detach()) for end in _socketpair(family, kind, proto))

    def send_fds(sock, buffers, fds):
        """Send data with descriptors; returns the number of bytes sent."""
        return sock.sendmsg(buffers, [(SOL_SOCKET, SCM_RIGHTS, pack(f"{len(fds)}i", *fds))])

    def recv_fds(sock, bufsize, maxfds):
        """Receive data and at most `maxfds` descriptors; returns data, descriptors, flags and the sender's address."""
        data, ancillary, flags, address = sock.recvmsg(bufsize, CMSG_LEN(maxfds * DESCRIPTOR))
        fds = []
        for level, kind, content in ancillary:
            if (level, kind) == (SOL_SOCKET, SCM_RIGHTS):
                fds += unpack(f"{len(content) // DESCRIPTOR}i", content)
        return data, fds, flags, address
