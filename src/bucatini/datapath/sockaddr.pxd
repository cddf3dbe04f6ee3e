"""Socket addresses from and to `addr_t`."""

from libc.stdint cimport uint16_t, uint32_t
from libc.string cimport memcpy, memset

from bucatini.datapath.headers cimport addr_from_v4, addr_is_v4, addr_t
from bucatini.datapath.syscalls cimport (
    AF_INET, AF_INET6, htons, ntohs, sockaddr, sockaddr_in, sockaddr_in6, socklen_t,
)

ctypedef union sockaddr_any:
    sockaddr sa
    sockaddr_in in4
    sockaddr_in6 in6

cdef inline socklen_t sockaddr_fill(sockaddr_any *out, const addr_t *a, uint16_t port,
                                    uint32_t scope_id) noexcept nogil:
    """Write the native form of an address: AF_INET for a v4-mapped one, else AF_INET6. Returns its size."""
    memset(out, 0, sizeof(sockaddr_any))
    if addr_is_v4(a):
        out.in4.sin_family = AF_INET
        out.in4.sin_port = htons(port)
        out.in4.sin_addr.s_addr = a.w[3]
        return sizeof(sockaddr_in)
    out.in6.sin6_family = AF_INET6
    out.in6.sin6_port = htons(port)
    memcpy(&out.in6.sin6_addr, a, 16)
    if (a.b[0] == 0xFE and (a.b[1] & 0xC0) == 0x80) or (a.b[0] == 0xFF and (a.b[1] & 0x0F) <= 2):  # of one link
        out.in6.sin6_scope_id = scope_id
    return sizeof(sockaddr_in6)

cdef inline uint16_t sockaddr_read(const sockaddr_any *sa, addr_t *out) noexcept nogil:
    """Read an address into `out`; returns the port, host order. Unknown families give :: and 0."""
    if sa.sa.sa_family == AF_INET:
        addr_from_v4(out, sa.in4.sin_addr.s_addr)
        return ntohs(sa.in4.sin_port)
    if sa.sa.sa_family == AF_INET6:
        memcpy(out, &sa.in6.sin6_addr, 16)
        return ntohs(sa.in6.sin6_port)
    memset(out, 0, sizeof(addr_t))
    return 0
