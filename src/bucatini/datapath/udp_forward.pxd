"""Interface of the forwards of UDP that go over the tap (`udp_forward.pyx`)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.flow cimport Flow
from bucatini.datapath.headers cimport addr_t
from bucatini.datapath.sockaddr cimport sockaddr_any
from bucatini.datapath.syscalls cimport msghdr
from bucatini.datapath.worker cimport Listener, Worker

# Datagrams, or errors, on a forward; level triggered. `events`: EPOLL*
cdef void udp_listener(Worker *w, Listener *listener, uint32_t events) noexcept nogil
# The forward of datagrams of an IP version to a port where `pif` says, NULL: there is none. `likely`: the index to look
# at first.
cdef Listener *udp_forward_at(Worker *w, uint32_t likely, uint8_t pif, uint16_t port, bint v4) noexcept nogil
# The forward that opened a flow, NULL: it is gone.
cdef Listener *udp_forward_of(Worker *w, const Flow *flow) noexcept nogil
# Addresses an answer of such a flow; `control` has UDP_CONTROL bytes. Returns the socket to send it with, or -1.
cdef int udp_forward_answer(Worker *w, const Flow *flow, msghdr *message, sockaddr_any *name,
                            uint8_t *control) noexcept nogil
# Gives the datagram in a slot, which came on the socket of a flow of the guest, to the forward that shares its port.
cdef void udp_forward_stray(Worker *w, const Flow *flow, int slot) noexcept nogil
# Addresses a datagram from the socket of a forward to `peer`, with `asked` as its source (unspecified: any).
cdef void udp_address_answer(const Listener *listener, const addr_t *peer, uint16_t port, const addr_t *asked,
                             uint32_t scope_id, msghdr *message, sockaddr_any *name, uint8_t *control) noexcept nogil
