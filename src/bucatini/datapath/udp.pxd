"""Interface of UDP flows (`udp.pyx`)."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t

from bucatini.datapath.flow cimport Flow, FlowKey
from bucatini.datapath.headers cimport addr_t
from bucatini.datapath.parse cimport FrameRef
from bucatini.datapath.sockaddr cimport sockaddr_any
from bucatini.datapath.syscalls cimport iovec, msghdr, socklen_t
from bucatini.datapath.worker cimport Listener, Worker

cdef int udp_init(Worker *w) noexcept nogil  # reserves the batch buffers; 0 or -errno
cdef void udp_free(Worker *w) noexcept nogil
# One frame of the current batch; may be kept until `udp_flush`
cdef void udp_frame(Worker *w, FrameRef *ref) noexcept nogil
cdef void udp_flush(Worker *w) noexcept nogil  # end of the batch: all frames kept are sent
cdef void udp_event(Worker *w, Flow *flow, uint32_t events) noexcept nogil  # of the flow's socket, edge triggered
cdef void udp_continue(Worker *w, Flow *flow) noexcept nogil  # a flow that put itself on the ready list
cdef void udp_timer(Worker *w, Flow *flow) noexcept nogil  # its timer fired
cdef void udp_close(Worker *w, Flow *flow) noexcept nogil  # before worker_drop_flow: what the module keeps of it

cdef void udp_hold(Worker *w, const Listener *listener, int change) noexcept nogil  # a forward has a port, or no more

# For `udp_forward` and `udp_splice`
cdef enum:
    UDP_SLOTS = 64  # datagrams received at once
    UDP_CONTROL = 96  # bytes of control data of one
    UDP_ERROR_CONTROL = 512  # and of an error
    UDP_ERRORS = 16  # errors taken from a queue in one turn
    UDP_TTL = 64  # what a socket has

cdef struct Slot:  # a received datagram
    uint8_t *payload
    uint32_t size
    sockaddr_any *name  # where it came from
    msghdr *message

# Receives up to `n` datagrams; `names`: with where they came from and went to. As recvmmsg(2).
cdef int udp_receive(Worker *w, int fd, int n, bint names) noexcept nogil
cdef void udp_slot(Worker *w, int index, Slot *out) noexcept nogil
# How many of the `n` datagrams received, from `first` on, may go in one send: equal ones and a shorter last.
cdef int udp_run_length(Worker *w, int first, int n) noexcept nogil
# The address that a datagram was sent to; unspecified when unknown.
cdef void udp_asked_address(const msghdr *message, addr_t *out) noexcept nogil
# One sendmsg to where the socket is connected, or to `message.msg_name`; `segment`: size of the datagrams, 0: one.
cdef int udp_send(int fd, msghdr *message, uint16_t segment) noexcept nogil
cdef bint udp_segments_refused(int error) noexcept nogil
# NULL: refused (counted). `from_host`: the host's side opens it
cdef Flow *udp_new_flow(Worker *w, const FlowKey *key, bint from_host) noexcept nogil
cdef void udp_make_roomy(Worker *w, int fd) noexcept nogil  # has a socket take bursts
cdef void udp_opened(Worker *w, Flow *flow) noexcept nogil
cdef void udp_close_flow(Worker *w, Flow *flow) noexcept nogil
# Closes a flow that may go, for its place or for its descriptor, of the side that has more of them; with nothing there
# that may go, one of the host's side, and for the guest's sake of either. Returns whether there was one.
cdef bint udp_make_room(Worker *w, bint descriptor, bint from_host) noexcept nogil
# Sends the datagrams in the slots from `first` to `n` to the guest, in superframes where that goes.
cdef void udp_deliver(Worker *w, Flow *flow, int first, int n) noexcept nogil
# Takes an error from a socket's queue; returns the bytes of the datagram that it is about, in slot 0, or -1.
# `control` has UDP_ERROR_CONTROL bytes, `name` becomes where the datagram went.
cdef int udp_next_error(Worker *w, int fd, msghdr *message, sockaddr_any *name, uint8_t *control) noexcept nogil
# Tells the guest of an error, about a datagram of `size` bytes in slot 0.
cdef void udp_report(Worker *w, Flow *flow, msghdr *message, int size) noexcept nogil
cdef uint32_t udp_flows(Worker *w) noexcept nogil  # how many there are
# Sockets of ours that hold a source port, where they are (`Pif`).
cdef uint16_t *udp_held(Worker *w, uint8_t pif, bint v4, uint16_t port) noexcept nogil
# Binds a flow's socket to a port that nobody but us has, and holds it; `held`: of that port. Whether it could be had.
cdef bint udp_bind_port(Flow *flow, uint16_t *held, const sockaddr_any *sa, socklen_t size,
                        uint16_t port) noexcept nogil
