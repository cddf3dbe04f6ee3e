"""Interface of address translation (`translate.pyx`): the one decision point of a new flow."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.headers cimport addr_t
from bucatini.datapath.worker cimport Listener, Worker

cdef struct Target:
    addr_t address  # to connect to
    uint16_t port
    uint32_t scope_id
    addr_t source  # to bind to, unspecified: none

# Where a flow that the guest opens towards `remote` goes on the host. 0, or -(Counter) when it may not.
cdef int translate_outbound(Worker *w, uint8_t protocol, const addr_t *remote, uint16_t port,
                            Target *out) noexcept nogil
# How a flow that the host's side opens looks to the guest: the peer's address and the guest's. 0 or -(Counter).
cdef int translate_inbound(Worker *w, const Listener *listener, const addr_t *peer, addr_t *remote,
                           addr_t *guest) noexcept nogil
# The address by which the guest knows a host address that reports an error (U2): the mapped one where there is one.
cdef void translate_reporter(Worker *w, addr_t *address) noexcept nogil
# Whether what came from `peer` and asked for `asked` on a listener bypasses the tap, and where it goes then.
cdef bint translate_bypass(Worker *w, const Listener *listener, const addr_t *peer, const addr_t *asked,
                           addr_t *out) noexcept nogil
