"""Address translation: the one decision point of a new flow.

By default nothing is translated: the guest has the host's address and speaks to the world as the host would. What
is translated is what two ends of the same address cannot mean otherwise:

* guest to `map_host_loopback` (by default its gateway): the host's loopback; the way back looks the same.
* guest to `map_guest_addr`: the host's own address, which the guest shadows.
* guest to `dns_forward`, ports 53 and 853: the host's resolver.
* host loopback, or the shadowed address, to a forward: comes from one of those addresses, else from `ours`.

What bypasses the tap comes from a loopback. From the host's it goes to the guest's own address, or to the namespace's
loopback (`host_lo_to_ns_lo`); from the namespace's to the same address of the host's loopback (L3); anywhere else if
the forward says so.

Nothing here remembers anything: a flow keeps what was decided.
"""

from libc.stdint cimport uint8_t, uint16_t
from libc.string cimport memcpy, memset

from bucatini.datapath.counters cimport C_DROP_IP_ADDRESS
from bucatini.datapath.flow cimport PIF_SPLICE
from bucatini.datapath.headers cimport (
    PROTO_UDP, addr_equal, addr_from_v4, addr_is_broadcast, addr_is_linklocal6, addr_is_loopback,
    addr_is_multicast, addr_is_unspecified, addr_is_v4, htonl,
)
from bucatini.datapath.worker cimport Family

cdef enum:
    DNS = 53  # RFC 1035 §4.2
    DNS_OVER_TLS = 853  # RFC 7858 §3.1


cdef inline void loopback_of(addr_t *out, bint v4) noexcept nogil:
    if v4:
        addr_from_v4(out, htonl(0x7F000001))
    else:
        memset(out, 0, sizeof(addr_t))
        out.b[15] = 1


cdef inline bint maps(const addr_t *mapped, const addr_t *address) noexcept nogil:
    return not addr_is_unspecified(mapped) and addr_equal(mapped, address)


cdef int translate_outbound(Worker *w, uint8_t protocol, const addr_t *remote, uint16_t port,
                            Target *out) noexcept nogil:
    cdef bint v4 = addr_is_v4(remote)
    cdef Family *family = &w.v4 if v4 else &w.v6
    cdef bint dns = port == DNS or port == DNS_OVER_TLS
    if not family.enabled or addr_is_unspecified(remote) or addr_is_loopback(remote) or addr_is_broadcast(remote) \
            or (addr_is_multicast(remote) and protocol != PROTO_UDP):
        return -C_DROP_IP_ADDRESS
    memcpy(&out.address, remote, sizeof(addr_t))
    memset(&out.source, 0, sizeof(addr_t))
    out.port = port
    out.scope_id = family.scope_id
    if dns and maps(&family.dns_forward, remote):
        memcpy(&out.address, &family.dns_host, sizeof(addr_t))
    elif maps(&family.map_host_loopback, remote) and not (dns and maps(&family.resolver_gateway, remote)):
        loopback_of(&out.address, v4)
    elif maps(&family.map_guest_addr, remote):
        memcpy(&out.address, &family.host, sizeof(addr_t))
    if addr_is_unspecified(&out.address):  # the host has none of that version; and connect(2) takes :: for ::1
        return -C_DROP_IP_ADDRESS
    if not addr_is_loopback(&out.address) and not addr_is_linklocal6(&out.address):
        memcpy(&out.source, &family.outbound, sizeof(addr_t))
    return 0


cdef int translate_inbound(Worker *w, const Listener *listener, const addr_t *peer, addr_t *remote,
                           addr_t *guest) noexcept nogil:
    cdef bint v4 = addr_is_v4(peer)
    cdef Family *family = &w.v4 if v4 else &w.v6
    if not family.enabled:
        return -C_DROP_IP_ADDRESS
    if not addr_is_unspecified(&listener.to_address):
        memcpy(guest, &listener.to_address, sizeof(addr_t))
    elif not v4 and addr_is_linklocal6(peer) and not addr_is_unspecified(&family.guest_linklocal):
        memcpy(guest, &family.guest_linklocal, sizeof(addr_t))
    elif not addr_is_unspecified(&family.guest):
        memcpy(guest, &family.guest, sizeof(addr_t))
    else:
        memcpy(guest, &family.guest_linklocal, sizeof(addr_t))
    if addr_is_unspecified(guest) or addr_is_v4(guest) != v4:
        return -C_DROP_IP_ADDRESS
    memcpy(remote, peer, sizeof(addr_t))
    translate_reporter(w, remote)
    if addr_equal(remote, guest):
        memcpy(remote, &family.ours, sizeof(addr_t))
    return 0


cdef void translate_reporter(Worker *w, addr_t *address) noexcept nogil:
    cdef Family *family = &w.v4 if addr_is_v4(address) else &w.v6
    if addr_is_loopback(address):
        if not addr_is_unspecified(&family.map_host_loopback):
            memcpy(address, &family.map_host_loopback, sizeof(addr_t))
        else:
            memcpy(address, &family.ours, sizeof(addr_t))
    elif maps(&family.guest, address) or maps(&family.host, address):
        if not addr_is_unspecified(&family.map_guest_addr):
            memcpy(address, &family.map_guest_addr, sizeof(addr_t))
        elif maps(&family.guest, address):
            memcpy(address, &family.ours, sizeof(addr_t))


cdef bint translate_bypass(Worker *w, const Listener *listener, const addr_t *peer, const addr_t *asked,
                           addr_t *out) noexcept nogil:
    cdef bint v4 = addr_is_v4(peer)
    cdef Family *family = &w.v4 if v4 else &w.v6
    if not listener.bypass or not addr_is_loopback(peer) or not family.enabled:
        return False
    if not addr_is_unspecified(&listener.to_address):
        memcpy(out, &listener.to_address, sizeof(addr_t))
    elif listener.pif == PIF_SPLICE:
        if not addr_is_loopback(asked):
            return False
        memcpy(out, asked, sizeof(addr_t))
    elif w.settings.host_lo_to_ns_lo:
        loopback_of(out, v4)
    else:
        memcpy(out, &family.guest, sizeof(addr_t))
    return not addr_is_unspecified(out) and addr_is_v4(out) == v4
