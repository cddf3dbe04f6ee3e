"""A host that has moved: what was under way from an address that it no longer has (D15).

A connected socket keeps the address that it left from. When the host has that no more, IPv4 refuses to send, and IPv6
sends what nobody can answer: a guest that goes on sending would never be heard again. So these UDP flows and pings are
let go, and the next datagram opens them anew, from the same port where it can be had; so are those that leave by an
interface that was asked for, which may be another one of that name. A connection of TCP is bound to its address for
good, and ends as one of the host itself does.

What it does not see: a host that lets anybody bind any address (net.ipv4.ip_nonlocal_bind) looks as if it had them all.
"""

# syscalls serve: getsockname socket bind close eventfd2

from libc.stdint cimport uint32_t
from libc.string cimport memcmp, memset

from bucatini.datapath.flow cimport FLOW_PING, FLOW_UDP, PIF_TAP, Flow
from bucatini.datapath.headers cimport addr_is_v4
from bucatini.datapath.icmp cimport icmp_close
from bucatini.datapath.sockaddr cimport sockaddr_any
from bucatini.datapath.syscalls cimport (
    EFD_CLOEXEC, SOCK_CLOEXEC, SOCK_DGRAM, bind, close, eventfd, getsockname, socket, socklen_t,
)
from bucatini.datapath.udp cimport udp_close_flow
from bucatini.datapath.worker cimport Family


cdef extern from "<errno.h>" nogil:
    int errno, EADDRNOTAVAIL, ENODEV


cdef bint is_gone(Worker *w, const sockaddr_any *sa, socklen_t size) noexcept nogil:
    """Whether the host does not have an address, or its link, (any more)."""
    cdef bint gone
    cdef int fd
    close(w.spare_fd)  # so that there is one, also when descriptors have run out
    fd = socket(sa.sa.sa_family, SOCK_DGRAM | SOCK_CLOEXEC, 0)
    gone = fd >= 0 and bind(fd, &sa.sa, size) < 0 and (errno == EADDRNOTAVAIL or errno == ENODEV)
    if fd >= 0:
        close(fd)
    w.spare_fd = eventfd(0, EFD_CLOEXEC)
    return gone


cdef void let_go_of_moved(Worker *w, bint v4) noexcept nogil:
    cdef uint32_t i
    cdef Flow *flow
    cdef sockaddr_any mine, last  # most have one address
    cdef socklen_t size
    cdef Family *family = &w.v4 if v4 else &w.v6
    cdef bint gone = False
    memset(&last, 0, sizeof(last))
    for i in range(w.flows.fresh):
        flow = &w.flows.flows[i]
        if ((flow.kind != FLOW_UDP and flow.kind != FLOW_PING) or flow.key.pif != PIF_TAP or flow.fd < 0
                or addr_is_v4(&flow.target) != v4):
            continue
        memset(&mine, 0, sizeof(mine))
        size = sizeof(mine)
        if getsockname(flow.fd, &mine.sa, &size) < 0:
            continue
        mine.in6.sin6_port = 0  # where sin_port is, too
        if memcmp(&mine, &last, sizeof(mine)) != 0:
            last = mine
            gone = family.outbound_if[0] != 0 or is_gone(w, &mine, size)
        if not gone:
            continue
        if flow.kind == FLOW_UDP:
            udp_close_flow(w, flow)
        else:
            icmp_close(w, flow)
