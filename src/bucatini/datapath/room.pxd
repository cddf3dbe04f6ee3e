"""Interface of what gives way when flows or descriptors run out (`room.pyx`)."""

from bucatini.datapath.worker cimport Worker

# Each makes room for a flow, if something may go; returns whether it did. `error`: EMFILE, ENFILE; 0: the table is full
cdef bint room_for_connection(Worker *w, int error) noexcept nogil  # of the guest's
cdef bint room_for_datagrams(Worker *w, int error) noexcept nogil  # UDP and echo, of the guest's
cdef bint room_for_host(Worker *w, int error) noexcept nogil  # a connection at a forward
cdef bint room_for_host_datagrams(Worker *w, int error) noexcept nogil
cdef bint room_is_short(int error) noexcept nogil  # whether it says that descriptors have run out
