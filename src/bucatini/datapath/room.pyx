"""Flows or descriptors have run out: what gives way to a new flow, and that it is told once.

For a flow of the guest's: the oldest of its own connections that is not established, then the oldest such of a forward,
then a UDP flow that has been silent (`udp_make_room`). For a connection of the host's side only the oldest of its own
kind: a flood at a forward must not push out what the guest is doing. Established connections never give way; where
nothing does, the new flow is refused.
"""

from bucatini.datapath.half_open cimport BY_GUEST, BY_HOST, half_open_give_way
from bucatini.datapath.udp cimport udp_make_room
from bucatini.datapath.worker cimport EXHAUSTED_DESCRIPTORS, EXHAUSTED_FLOWS


cdef extern from "<errno.h>" nogil:
    int EMFILE, ENFILE


cdef bint room_is_short(int errno_) noexcept nogil:
    return errno_ == EMFILE or errno_ == ENFILE


cdef bint room_for_guest(Worker *w, int errno_) noexcept nogil:
    w.exhausted |= EXHAUSTED_DESCRIPTORS if errno_ else EXHAUSTED_FLOWS
    return half_open_give_way(w, BY_GUEST) or half_open_give_way(w, BY_HOST) or udp_make_room(w)


cdef bint room_for_host(Worker *w, int errno_) noexcept nogil:
    w.exhausted |= EXHAUSTED_DESCRIPTORS if errno_ else EXHAUSTED_FLOWS
    return half_open_give_way(w, BY_HOST)
