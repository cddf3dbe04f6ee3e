"""Interface of the frame builder (`build.pyx`): headers towards the guest."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.flow cimport Flow, FlowKey
from bucatini.datapath.headers cimport addr_t, vnet_hdr
from bucatini.datapath.syscalls cimport msghdr
from bucatini.datapath.tcp cimport TcpConn
from bucatini.datapath.worker cimport Worker

# Ethernet and IP header from `src` to `dst` at `out`; `l4_length` bytes follow. Returns their size (34 or 54).
cdef uint32_t build_ip(Worker *w, uint8_t *out, const addr_t *src, const addr_t *dst, uint8_t protocol,
                       uint32_t l4_length, uint8_t ttl) noexcept nogil
# UDP header with a partial checksum (`vnet` says so) for a run of datagrams of `size` bytes each (one: gso_size 0),
# `total` in all, from key.remote to key.guest.
# Everything up to the payload; returns the offset of the payload (42 or 62).
cdef uint32_t build_udp(Worker *w, uint8_t *out, const FlowKey *key, uint32_t size, uint32_t total,
                        vnet_hdr *vnet) noexcept nogil
# TCP header likewise: `options` bytes that the caller writes end it, `length` bytes of payload follow. Returns the
# offset of the payload (54 or 74, and the options).
cdef uint32_t build_tcp(Worker *w, uint8_t *out, const FlowKey *key, uint32_t seq, uint32_t ack, uint16_t window,
                        uint8_t flags, uint32_t options, uint32_t length, uint16_t mss, vnet_hdr *vnet) noexcept nogil
# Completes the echo reply or error whose ICMP header and body stand at `l4`: fills in the checksum, in software.
cdef void build_icmp_checksum(uint8_t *l4, uint32_t length, const addr_t *src, const addr_t *dst) noexcept nogil

cdef enum IcmpError:  # what a host error means to the guest, translated to the version's type and code
    ICMP_NET_UNREACHABLE
    ICMP_HOST_UNREACHABLE
    ICMP_PORT_UNREACHABLE
    ICMP_PROHIBITED
    ICMP_TOO_BIG
    ICMP_TTL_EXCEEDED
# An ICMP error from `reporter` to the guest, quoting the packet of the guest that it sent from key.guest to key.remote:
# its IP header rebuilt, and `quoted` bytes of L4 header and payload. Sends it and counts. `mtu` only with ICMP_TOO_BIG.
cdef void build_icmp_error(Worker *w, const FlowKey *key, const addr_t *reporter, int error, uint32_t mtu,
                           const uint8_t *l4, uint32_t quoted, uint32_t l4_length) noexcept nogil
cdef int icmp_error_of(int error_number) noexcept nogil
# Whether a failed send says only that there is no room now: a full queue drops, and tells nobody.
cdef bint icmp_is_silent(int error_number) noexcept nogil
# Reads an error of a flow's that was taken from a queue (MSG_ERRQUEUE): the IcmpError, who reports it, as the guest
# knows him, and the MTU with ICMP_TOO_BIG, else 0. -1: the message has none.
cdef int icmp_error_reported(Worker *w, const Flow *flow, const msghdr *message, addr_t *reporter,
                             uint32_t *mtu) noexcept nogil
