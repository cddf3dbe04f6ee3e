"""Interface of what gives way when flows or descriptors run out (`room.pyx`)."""

from bucatini.datapath.worker cimport Worker

# Each makes room for one flow, where something may go; returns whether it did. `errno_`: EMFILE, ENFILE, or 0: the table
cdef bint room_for_guest(Worker *w, int errno_) noexcept nogil
cdef bint room_for_host(Worker *w, int errno_) noexcept nogil
cdef bint room_is_short(int errno_) noexcept nogil  # whether it says that descriptors have run out
