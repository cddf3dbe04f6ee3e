"""Flows or descriptors have run out: what gives way to a new flow, and that it is told once.

For a flow of the guest's the kind that has most gives way, so that a flood of one kind takes no room from the others:
of connections that are not established and of pings the oldest (`by_age`), of UDP flows one that is not in use
(`udp_make_room`). A connection of the guest's, and only that, may also push out an older one whatever there is of it.

For a flow of the host's side only its own kind: a flood at a forward must not push out what the guest is doing. Of UDP
flows the side that has more of them gives way.
Established connections never give way; where nothing does, the new flow is refused.
"""

from bucatini.datapath.by_age cimport AGED_GUEST, AGED_HOST, AGED_PING, by_age_give_way
from bucatini.datapath.udp cimport udp_flows, udp_make_room
from bucatini.datapath.worker cimport NOTICE_DESCRIPTORS, NOTICE_FLOWS


cdef extern from "<errno.h>" nogil:
    int EMFILE, ENFILE


cdef bint room_is_short(int error) noexcept nogil:
    return error == EMFILE or error == ENFILE


cdef inline void note(Worker *w, int error) noexcept nogil:
    w.notices |= NOTICE_DESCRIPTORS if error else NOTICE_FLOWS


cdef bint room_for_datagrams(Worker *w, int error) noexcept nogil:
    cdef int kind, most = AGED_GUEST
    note(w, error)
    for kind in range(AGED_GUEST, AGED_PING + 1):
        if w.by_age[kind].count > w.by_age[most].count:
            most = kind
    if udp_flows(w) > w.by_age[most].count:
        return udp_make_room(w, error != 0, False)
    return by_age_give_way(w, most)


cdef bint room_for_connection(Worker *w, int error) noexcept nogil:
    return room_for_datagrams(w, error) or by_age_give_way(w, AGED_GUEST)


cdef bint room_for_host(Worker *w, int error) noexcept nogil:
    note(w, error)
    return by_age_give_way(w, AGED_HOST)


cdef bint room_for_host_datagrams(Worker *w, int error) noexcept nogil:
    note(w, error)
    return udp_make_room(w, error != 0, True)
