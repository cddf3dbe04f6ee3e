"""Interface of the sockets of the guest's namespace (`socket_pool.pyx`)."""

from libc.stdint cimport uint8_t

from bucatini.datapath.worker cimport Worker

cdef int sockets_open(Worker *w, int fd) noexcept nogil  # `fd`: to the maker; 0 or -errno
cdef void sockets_free(Worker *w) noexcept nogil
cdef void sockets_event(Worker *w) noexcept nogil  # the maker has something for us
# An unbound socket of the guest's namespace, non-blocking; TCP has TCP_NODELAY. -EMFILE: descriptors have run out,
# -EAGAIN: the maker does not answer.
cdef int sockets_take(Worker *w, uint8_t protocol, bint v4) noexcept nogil
