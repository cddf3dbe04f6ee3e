"""The loop of one worker, and `DataPath`, by which Python sets it up and runs it.

Each turn: wait; take a batch of frames from the link and run it through the protocols; serve the sockets that have
something; continue the flows that used up their share; fire timers. The loop runs without the GIL. It takes it for
these only: a frame of the slow path, a descriptor that Python watches, the slow path's timer, a link that is lost, what
has run out (once each), and the trace.

An exception in Python, of whatever kind, costs the frame it was about (`slow_errors`), never the loop.

Python takes a hundred times as long for a frame as the packet path, so what it may take has a bound (`SLOW_SHARE`, by
kind: ARP, IPv4, IPv6): a storm of one kind is dropped beyond it (`drop_slow_budget`), and the flows and the other kinds
go on. A turn has a bound too, whatever waits: frames of one batch (or `TURN`), `EVENTS` events, `CONTINUES` flows that
want to go on, `TIMERS` timers.
"""

# syscalls serve: epoll_wait epoll_pwait epoll_ctl close eventfd2 clock_gettime
# syscalls pasta: epoll_pwait2

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from bucatini.datapath.by_age cimport by_age_init
from bucatini.datapath.capture cimport capture_close, capture_open, trace_open
from bucatini.datapath.counters cimport (
    C_DROP_SLOW, C_DROP_SLOW_BUDGET, C_FRAGMENTS_IN, C_SLOW_ERRORS, C_SLOW_IN, C_SLOW_OUT, Counters, names,
)
from bucatini.datapath.fault cimport FAULTS, fault_close, fault_open
from bucatini.datapath.flow cimport (
    FLOW_FREE, FLOW_NONE, FLOW_PING, FLOW_SPLICE, FLOW_TCP, FLOW_UDP, PIF_HOST, PIF_SPLICE, Flow, FlowTable,
    flow_table_free, flow_table_init,
)
from bucatini.datapath.headers cimport (
    ETH_HLEN, ETH_P_ARP, FRAME_MAX, addr_equal, addr_is_linklocal6, addr_is_unspecified, addr_is_v4, addr_t, be16,
    vnet_hdr,
)
from bucatini.datapath.icmp cimport icmp_event, icmp_frame, icmp_timer
from bucatini.datapath.link cimport LINK_BATCH, LINK_TSO, LINK_USO, Frame, Link
from bucatini.datapath.link_stream cimport stream_attach, stream_close, stream_open, stream_rest
from bucatini.datapath.link_tap cimport tap_close, tap_open
from bucatini.datapath.moved cimport let_go_of_moved
from bucatini.datapath.parse cimport KIND_ECHO, KIND_FRAGMENT, KIND_TCP, KIND_UDP, FrameRef, parse_frame
from bucatini.datapath.reassemble cimport reassemble, reassemble_free, reassemble_init
from bucatini.datapath.socket_pool cimport sockets_event, sockets_free, sockets_open
from bucatini.datapath.syscalls cimport (
    CLOCK_MONOTONIC, EFD_CLOEXEC, EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, EPOLLIN, EPOLLOUT,
    clock_gettime, close, epoll_create1, epoll_ctl, epoll_event, epoll_pwait2, epoll_wait, eventfd, timespec,
)
from bucatini.datapath.tcp_forward cimport tcp_listener
from bucatini.datapath.tcp_io cimport (
    tcp_acknowledge, tcp_continue, tcp_deliver, tcp_event, tcp_flush, tcp_frame, tcp_free, tcp_init, tcp_timer,
)
from bucatini.datapath.tcp_splice cimport splice_continue, splice_event, splice_free, splice_init, splice_rested
from bucatini.datapath.timers cimport TimerWheel, timer_due, timer_wait_ms, timers_init
from bucatini.datapath.udp cimport (
    udp_continue, udp_event, udp_flush, udp_frame, udp_free, udp_hold, udp_init, udp_timer,
)
from bucatini.datapath.udp_forward cimport udp_listener
from bucatini.datapath.worker cimport (
    NOTICE_DESCRIPTORS, NOTICE_FLOWS, NOTICE_HALF_OPEN, LISTENER_MAX, REF_FLOW, REF_FLOW_OTHER, REF_LINK, REF_LISTENER,
    REF_PYTHON, REF_SOCKETS, NOTICE_AFTER_FIN, Family, Listener, Worker, count, worker_next,
)

import os


cdef extern from "<errno.h>" nogil:
    int errno, EINTR, ENOSPC


cdef extern from "<sys/resource.h>" nogil:
    cdef struct rlimit:
        unsigned long rlim_cur
    int getrlimit(int resource, rlimit *limit)
    int RLIMIT_NOFILE


cdef enum:
    EVENTS = 64  # of one wait
    PROTO_TCP = 6
    PROTO_UDP = 17
    TURN = 524288  # bytes of bulk transfers taken from the link before what they wait for gets its turn
    BULK = 32768  # bytes of a batch that speak for a transfer
    PRESSED = 1024  # frames without a pause: a tap's queue has 1,000
    RUSH = 16  # batches taken in one turn while the link is pressed: its queue must become empty
    PORTS_SHARE = 2  # of the ports that the host's kernel hands out the guest has one in so many at most
    CONTINUES = 64  # flows that go on with their next share in one turn
    TIMERS = 64  # timers fired in one turn
    SLOW_KINDS = 3  # of slow path frames: ARP and others, IPv4, IPv6
    SLOW_SHARE = 20  # Python has one part in so many of the time for each kind: 3,000 requests a second and more
    SLOW_LENGTH = 2048  # bytes: longer is no message of those protocols, only work
    OTHER_DESCRIPTORS = 64  # that are no flow's socket and no listener's
    LINKS = 4  # the guest's, and at most three that wrap it

cdef uint64_t SLOW_BURST_NS = 50000000  # what a kind may take at once: 2,500 requests, more than a guest that boots has
cdef uint64_t SLOW_MOST_NS = 1000000  # one frame is charged: more was time that the kernel gave to somebody else
cdef uint64_t RETRY_NS = 1000000000  # until the slow path's timer is called again when it failed

FEATURE_TSO = LINK_TSO
FEATURE_USO = LINK_USO


cdef inline uint64_t clock_ns() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <uint64_t> now.tv_sec * 1000000000 + now.tv_nsec


cdef bint can_wait_briefly(int epoll) noexcept nogil:
    """Whether the kernel has epoll_pwait2(2) (Linux 5.11)."""
    cdef epoll_event event
    cdef timespec none
    none.tv_sec = 0
    none.tv_nsec = 0
    return epoll_pwait2(epoll, &event, 1, &none) >= 0


cdef inline void learn(Worker *w, const FrameRef *ref) noexcept nogil:
    """Follow the addresses that the guest uses, where it was not told which."""
    cdef Family *family = &w.v4 if ref.version == 4 else &w.v6
    if ref.version == 6 and addr_is_linklocal6(&ref.src):
        # Only the guest's own (D17); what was put together from fragments does not say whose it was
        if (ref.frame != NULL and not addr_equal(&ref.src, &family.guest_linklocal)
                and memcmp(w.guest_mac, ref.frame + 6, 6) == 0):
            memcpy(&family.guest_linklocal, &ref.src, sizeof(addr_t))
    elif family.learn and not addr_equal(&ref.src, &family.guest) and not addr_is_unspecified(&ref.src):
        memcpy(&family.guest, &ref.src, sizeof(addr_t))


cdef inline bint is_arp_of(const addr_t *sender, const FrameRef *ref) noexcept nogil:
    """Whether a frame is ARP from this IPv4 address (RFC 826: it follows 14 bytes behind the Ethernet header)."""
    return (ref.length >= ETH_HLEN + 28 and be16(ref.frame + 12) == ETH_P_ARP and addr_is_v4(sender)
            and memcmp(ref.frame + ETH_HLEN + 14, sender.b + 12, 4) == 0)


cdef inline bint is_guest(Worker *w, const FrameRef *ref) noexcept nogil:
    """Whether a frame from an Ethernet address not seen before is the guest's: it has the address given to it (D17)."""
    cdef Family *family
    if w.guest_mac[0] & 1:  # nobody is known yet
        return True
    if ref.version == 0:
        return w.v4.learn or is_arp_of(&w.v4.guest, ref)
    family = &w.v4 if ref.version == 4 else &w.v6
    return (family.learn or addr_equal(&ref.src, &family.guest)
            or (ref.version == 6 and addr_equal(&ref.src, &family.guest_linklocal)))


cdef int parse_address(addr_t *out, bytes value) except -1:
    """Take 16 bytes, or none at all for "unspecified"."""
    memset(out, 0, sizeof(addr_t))
    if value:
        if len(value) != 16:
            raise ValueError("an address is 16 bytes")
        memcpy(out, <const char *> value, 16)
    return 0


cdef class DataPath:
    """The packet path of one instance: one worker and its link.

    Addresses are 16 bytes, IPv4 as ::ffff:a.b.c.d; b"" means none. Call `settings`, `family`, `open_tap` or
    `open_stream`, `add_listener` and `watch`, then `run`.
    """

    cdef Worker w
    cdef FlowTable table
    cdef TimerWheel wheel
    cdef Counters counts
    cdef Link links[LINKS]
    cdef int depth
    cdef bint stopped
    cdef bint polled_out  # the stream link's descriptor
    cdef bint faulty  # links[1] makes faults
    cdef bint busy  # the link had something in the last turn
    cdef int taken  # frames, the last time that it had
    cdef uint64_t unpaused  # frames since the link had fewer than were asked for
    cdef uint32_t unused  # listeners before this one are all in use
    cdef uint64_t[SLOW_KINDS] slow_spent  # ns of Python's time that are not paid off yet, by kind of frame
    cdef uint64_t[SLOW_KINDS] slow_paid  # ns, when that was
    cdef uint32_t told  # of `Worker.notices`
    cdef object on_notice
    cdef uint64_t slow_at  # ns, when the slow path wants to be called; 0: never
    cdef object slow
    cdef object trace
    cdef object on_lost
    cdef list watched
    cdef int failed

    def __cinit__(self, int flows=131072, int listeners=1024):
        """Reserve all memory: for `flows` flows and `listeners` bound ports."""
        cdef bytes key = os.urandom(32)
        cdef Worker *w = &self.w
        cdef rlimit files
        cdef int others
        if not 0 < listeners <= LISTENER_MAX or flows < 1:
            raise ValueError("listeners or flows")
        memset(w, 0, sizeof(Worker))
        w.epoll = -1
        w.spare_fd = -1
        if flow_table_init(&self.table, flows, <const uint8_t *> <const char *> key) < 0:
            raise MemoryError
        memcpy(&w.isn_key, <const char *> key + 16, 16)
        w.now = clock_ns()
        timers_init(&self.wheel, w.now)
        w.wire = &self.links[0]
        w.flows = &self.table
        w.timers = &self.wheel
        w.counters = &self.counts
        w.ready_head = FLOW_NONE
        w.ready_tail = FLOW_NONE
        w.capacity = flows
        others = OTHER_DESCRIPTORS + listeners
        if getrlimit(RLIMIT_NOFILE, &files) == 0 and files.rlim_cur < <unsigned long> (flows + others):
            w.capacity = max(OTHER_DESCRIPTORS, <int> files.rlim_cur - others)
        w.udp_ports = flows
        by_age_init(w)
        memset(w.guest_mac, 0xFF, 6)
        w.settings.mtu = 65520
        w.listener_limit = listeners
        w.listeners = <Listener *> calloc(listeners, sizeof(Listener))
        if (w.listeners == NULL or tcp_init(w) < 0 or udp_init(w) < 0 or reassemble_init(w) < 0
                or splice_init(w) < 0):
            raise MemoryError
        w.epoll = epoll_create1(EPOLL_CLOEXEC)
        w.spare_fd = eventfd(0, EFD_CLOEXEC)
        w.can_rest = can_wait_briefly(w.epoll)
        if w.epoll < 0 or w.spare_fd < 0:
            raise OSError(errno, os.strerror(errno))
        self.watched = []

    def __dealloc__(self):
        cdef int i
        if self.w.epoll >= 0:
            close(self.w.epoll)
            close(self.w.spare_fd)
        for i in range(self.depth - 1, 0, -1):
            if self.faulty and i == 1:
                fault_close(&self.links[i])
            elif self.links[i].state != NULL:
                capture_close(&self.links[i])
        if self.depth and self.links[0].flush != NULL:
            stream_close(&self.links[0])
        elif self.depth:
            tap_close(&self.links[0])
        if self.w.tcp != NULL:
            tcp_free(&self.w)
        if self.w.udp != NULL:
            udp_free(&self.w)
        if self.w.reassembly != NULL:
            reassemble_free(&self.w)
        if self.w.splice != NULL:
            splice_free(&self.w)
        if self.w.sockets != NULL:
            sockets_free(&self.w)
        free(self.w.listeners)
        if self.table.flows != NULL:
            flow_table_free(&self.table)

    def settings(self, *, int mtu, bytes our_mac, bint no_tcp, bint no_udp, bint no_icmp, bint freebind, bint peek_off,
                 bint host_lo_to_ns_lo=False, int ports=65536):
        """Set what holds for the whole run.

        Args:
            mtu: of the guest's link, bytes, 1280..65520 (68 and up without IPv6).
            our_mac: 6 bytes.
            peek_off: whether SO_PEEK_OFF works on TCP sockets here.
            host_lo_to_ns_lo: what bypasses the tap arrives on the namespace's loopback, not at the guest's address.
            ports: that the host's kernel hands out; half of them are left to others.
        """
        if len(our_mac) != 6 or not 68 <= mtu <= 65535:
            raise ValueError("mtu or our_mac")
        self.w.settings.mtu = mtu
        memcpy(self.w.settings.our_mac, <const char *> our_mac, 6)
        self.w.settings.no_tcp = no_tcp
        self.w.settings.no_udp = no_udp
        self.w.settings.no_icmp = no_icmp
        self.w.settings.freebind = freebind
        self.w.settings.peek_off = peek_off
        self.w.settings.host_lo_to_ns_lo = host_lo_to_ns_lo
        self.w.udp_ports = max(1, ports // PORTS_SHARE)

    def family(self, int version, *, bytes guest, bint learn, bytes ours, bytes map_host_loopback=b"",
               bytes map_guest_addr=b"", bytes host=b"", bytes dns_forward=b"", bytes dns_host=b"",
               bytes resolver_gateway=b"", bytes outbound=b"", str outbound_if="", int scope_id=0):
        """Enable an IP version and set its addresses (`Family`)."""
        cdef Family *f = &self.w.v4 if version == 4 else &self.w.v6
        cdef bytes name = outbound_if.encode()
        if len(name) > 15:
            raise ValueError("outbound_if")
        parse_address(&f.guest, guest)
        parse_address(&f.assigned, guest)
        parse_address(&f.ours, ours)
        parse_address(&f.map_host_loopback, map_host_loopback)
        parse_address(&f.map_guest_addr, map_guest_addr)
        parse_address(&f.host, host)
        parse_address(&f.dns_forward, dns_forward)
        parse_address(&f.dns_host, dns_host)
        parse_address(&f.resolver_gateway, resolver_gateway)
        parse_address(&f.outbound, outbound)
        memset(f.outbound_if, 0, 16)
        memcpy(f.outbound_if, <const char *> name, len(name))
        f.learn = learn
        f.scope_id = scope_id
        f.enabled = True

    def resolver(self, int version, *, bytes dns_forward=b"", bytes dns_host=b"", bytes resolver_gateway=b""):
        """Change the host's resolver; conversations that go on keep theirs."""
        cdef Family *f = &self.w.v4 if version == 4 else &self.w.v6
        parse_address(&f.dns_forward, dns_forward)
        parse_address(&f.dns_host, dns_host)
        parse_address(&f.resolver_gateway, resolver_gateway)

    def host_address(self, int version, bytes address, *, int scope_id):
        """Change the host's own address and the interface of link-local destinations; lets go of what left from others.

        Args:
            address: 16 bytes.
        """
        cdef Family *f = &self.w.v4 if version == 4 else &self.w.v6
        parse_address(&f.host, address)
        f.scope_id = scope_id
        let_go_of_moved(&self.w, version == 4)

    def guest_mac(self, bytes mac):
        """Tell the guest's MAC address before it has spoken; its link-local address follows (RFC 4291 appendix A)."""
        if len(mac) != 6:
            raise ValueError("mac")
        memcpy(self.w.guest_mac, <const char *> mac, 6)
        parse_address(&self.w.v6.guest_linklocal,
                      b"\xfe\x80" + bytes(6) + bytes([mac[0] ^ 2]) + mac[1:3] + b"\xff\xfe" + mac[3:])

    def open_tap(self, int fd, int features):
        """Attach the tap `fd`; `features`: FEATURE_TSO | FEATURE_USO as its kernel accepted them."""
        cdef int error = tap_open(&self.links[0], fd, features, &self.counts)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        self._use_link()
        self._register(fd, <uint64_t> REF_LINK << 56)

    def open_stream(self, on_lost):
        """Serve a client at a stream socket, once there is one (`attach`).

        Args:
            on_lost: called when it is gone, with an errno and a number: EPROTO and the length that no frame can have,
                or ENOTCONN (the stream ended) or the socket's error, and the bytes of a frame that had come. Its
                descriptor is the caller's to close.
        """
        cdef int error = stream_open(&self.links[0], &self.counts)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        self.on_lost = on_lost
        self._use_link()

    def attach(self, int fd):
        """Serve the client at `fd`: a connected stream socket. Its addresses are not known yet."""
        self._register(fd, <uint64_t> REF_LINK << 56)
        stream_attach(&self.links[0], fd)
        self.polled_out = False
        memset(self.w.guest_mac, 0xFF, 6)
        memcpy(&self.w.v4.guest, &self.w.v4.assigned, sizeof(addr_t))
        memcpy(&self.w.v6.guest, &self.w.v6.assigned, sizeof(addr_t))
        memset(&self.w.v6.guest_linklocal, 0, sizeof(addr_t))

    def detach(self):
        """Serve the client no longer; returns its descriptor, -1: there is none. Connections wait for the next one."""
        cdef int fd = self.links[0].fd
        if fd >= 0:
            self.unwatch(fd)
            stream_attach(&self.links[0], -1)
        return fd

    @property
    def knows_guest(self):
        """Whether the guest's MAC address is known."""
        return not self.w.guest_mac[0] & 1

    cdef void _use_link(self):
        self.depth = 1
        self.w.link = &self.links[0]

    def make_faults(self, dict chances, *, double late=0.002, uint64_t seed=1):
        """Lose, repeat, delay, corrupt and cut frames from now on; the first of the links that wrap the tap.

        Args:
            chances: "loss", "duplicate", "reorder", "corrupt", "truncate" -> probability of a frame.
            late: how long a frame that is overtaken waits, seconds.
        """
        cdef uint32_t[FAULTS] of
        cdef int i, error
        for i, name in enumerate(("loss", "duplicate", "reorder", "corrupt", "truncate")):
            of[i] = <uint32_t> min(<double> chances.get(name, 0.0) * 4294967296.0, 4294967295.0)
        error = fault_open(&self.links[self.depth], self.w.link, of, <uint64_t> (late * 1e9), seed)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        self.w.link = &self.links[self.depth]
        self.faulty = True
        self.depth += 1

    def capture(self, int fd):
        """Write every frame from now on to `fd`, in pcap format."""
        cdef int error = capture_open(&self.links[self.depth], self.w.link, fd)
        if error < 0:
            raise OSError(-error, os.strerror(-error))
        self.w.link = &self.links[self.depth]
        self.depth += 1

    def set_trace(self, trace):
        """Call `trace(sender, frame)` for every frame from now on; `sender` is "guest" or "host"."""
        self.trace = trace
        if trace_open(&self.links[self.depth], self.w.link, <void *> trace) < 0:
            raise MemoryError
        self.w.link = &self.links[self.depth]
        self.depth += 1

    def set_slow_path(self, slow):
        """Give the slow path: an object with on_frame(frame, now), next_timeout() and on_timeout(now)."""
        self.slow = slow
        self._slow_timer()

    def tell_notices(self, callback):
        """Call `callback(what)` for the first time that "flows", "descriptors" or "half-open" have run out.

        "data-after-fin": the guest sent what cannot be.
        """
        self.on_notice = callback

    def open_sockets(self, int fd):
        """Get sockets of the guest's namespace from the maker behind `fd` (`socket_pool`)."""
        cdef int error = sockets_open(&self.w, fd)
        if error < 0:
            raise OSError(-error, os.strerror(-error))

    def add_listener(self, int fd, int protocol, int version, int port, int to, *, bytes address=b"",
                     bytes to_address=b"", int scope_id=0, bint guest=False, bint bypass=False):
        """Serve a bound socket: listening (TCP) or not connected (UDP). Returns a handle for `remove_listener`.

        Args:
            version: 4, 6, or 0 for dual stack.
            port: it is bound to; `to`: on the other side. Host order.
            guest: it is bound in the guest's namespace, not on the host.
            bypass: local connections go from socket to socket; from the guest's namespace no others go at all.

        Raises:
            OSError: ENOSPC when as many listeners as were reserved are there.
        """
        cdef uint32_t index = self.unused
        cdef Listener *listener
        while index < self.w.listener_count and self.w.listeners[index].used:
            index += 1
        if index == self.w.listener_limit:
            raise OSError(ENOSPC, os.strerror(ENOSPC))
        listener = &self.w.listeners[index]
        memset(listener, 0, sizeof(Listener))
        listener.fd = fd
        listener.protocol = protocol
        listener.version = version
        listener.pif = PIF_SPLICE if guest else PIF_HOST
        listener.bypass = bypass
        listener.port = port
        listener.to = to
        listener.scope_id = scope_id
        listener.accepts = 1
        parse_address(&listener.address, address)
        parse_address(&listener.to_address, to_address)
        self._register(fd, <uint64_t> REF_LISTENER << 56 | index)
        listener.used = True
        if protocol == PROTO_UDP:
            udp_hold(&self.w, listener, 1)
        self.unused = index + 1
        if index == self.w.listener_count:
            self.w.listener_count += 1
        return index

    def remove_listener(self, uint32_t index):
        """Close a listener; what it has opened goes on."""
        cdef Listener *listener = &self.w.listeners[index]
        if index < self.w.listener_count and listener.used:
            close(listener.fd)
            listener.used = False
            if listener.protocol == PROTO_UDP:
                udp_hold(&self.w, listener, -1)
            self.unused = min(self.unused, index)

    def watch(self, int fd, callback):
        """Call `callback()` whenever `fd` is readable."""
        self._register(fd, <uint64_t> REF_PYTHON << 56 | <uint64_t> len(self.watched))
        self.watched.append((fd, callback))

    def unwatch(self, int fd):
        """Stop watching `fd`."""
        cdef epoll_event event
        epoll_ctl(self.w.epoll, EPOLL_CTL_DEL, fd, &event)

    def _register(self, int fd, uint64_t ref):
        cdef epoll_event event
        event.events = EPOLLIN
        event.data.u64 = ref
        if epoll_ctl(self.w.epoll, EPOLL_CTL_ADD, fd, &event) < 0:
            raise OSError(errno, os.strerror(errno))

    def stop(self):
        """Make `run` return at the end of this turn."""
        self.stopped = True

    def counters(self):
        """Return the counters: name -> value."""
        return {name: self.counts[i] for i, name in enumerate(names())}

    def count_slow_error(self):
        """Count an error of the slow path that it has dealt with itself."""
        count(&self.w, C_SLOW_ERRORS)

    @property
    def flows(self):
        """Flows in the table."""
        return self.table.used

    def run(self):
        """Serve until `stop`, which may have come already; raises OSError when the link fails."""
        self.failed = 0
        with nogil:
            self._loop()
        if self.failed:
            raise OSError(self.failed, os.strerror(self.failed))

    cdef void _loop(self) noexcept nogil:
        cdef Worker *w = &self.w
        cdef epoll_event[EVENTS] events
        cdef Flow *flow
        cdef uint64_t ref
        cdef uint32_t index, generation
        cdef int _i
        cdef int n, i, kind
        cdef bint link_ready
        while not self.stopped:
            n = self._wait(events)
            w.now = clock_ns()
            w.turn += n < EVENTS  # else some that are ready were not told
            if n < 0 and errno != EINTR:
                self.failed = errno
                return
            link_ready = False
            for i in range(n):
                ref = events[i].data.u64
                kind = <int> (ref >> 56)
                index = <uint32_t> ref
                if kind == REF_LINK:
                    link_ready = events[i].events & ~EPOLLOUT
                    if events[i].events & EPOLLOUT:
                        w.wire.flush(w.wire)
                elif kind == REF_FLOW or kind == REF_FLOW_OTHER:
                    flow = &self.table.flows[index]
                    generation = <uint32_t> (ref >> 32) & 0xFFFFFF
                    # An event may be of a socket that an earlier event of this turn has closed
                    if flow.kind != FLOW_FREE and (flow.generation & 0xFFFFFF) == generation:
                        if flow.kind == FLOW_TCP:
                            tcp_event(w, flow, events[i].events)
                        elif flow.kind == FLOW_SPLICE:
                            splice_event(w, flow, kind == REF_FLOW_OTHER, events[i].events)
                        elif flow.kind == FLOW_UDP:
                            udp_event(w, flow, events[i].events)
                        else:
                            icmp_event(w, flow, events[i].events)
                elif kind == REF_LISTENER:
                    if not w.listeners[index].used:
                        pass
                    elif w.listeners[index].protocol == PROTO_TCP:
                        tcp_listener(w, &w.listeners[index])
                    else:
                        udp_listener(w, &w.listeners[index], events[i].events)
                elif kind == REF_SOCKETS:
                    sockets_event(w)
                else:
                    self._python(index)
            if link_ready or w.wire.more or (self.faulty and self.links[1].wake_at and w.now >= self.links[1].wake_at):
                self._frames()
                if self.failed:
                    return
            if w.rest_at and w.now >= w.rest_at:
                splice_rested(w)
            self.busy = link_ready
            if not w.wire.blocked:
                self._continue()
            for _i in range(TIMERS):
                flow = timer_due(w.timers, w.flows, w.now)
                if flow == NULL:
                    break
                if flow.kind == FLOW_TCP:
                    tcp_timer(w, flow)
                elif flow.kind == FLOW_UDP:
                    udp_timer(w, flow)
                elif flow.kind == FLOW_PING:
                    icmp_timer(w, flow)
            if w.acknowledge_at and w.now >= w.acknowledge_at:
                tcp_acknowledge(w)
            if self.slow_at and w.now >= self.slow_at:
                self._slow_timeout()
            if w.notices & ~self.told:
                self._tell_notices()
            if w.wire.flush != NULL:
                self._flush()

    cdef void _flush(self) noexcept nogil:
        """Send what a stream link has gathered; have it polled for output while it cannot."""
        cdef Link *link = self.w.wire
        cdef epoll_event event
        if not link.waiting:
            link.flush(link)
        if link.waiting != self.polled_out and link.fd >= 0:
            self.polled_out = link.waiting
            event.events = EPOLLIN | EPOLLOUT if link.waiting else EPOLLIN
            event.data.u64 = <uint64_t> REF_LINK << 56
            epoll_ctl(self.w.epoll, EPOLL_CTL_MOD, link.fd, &event)

    cdef int _wait(self, epoll_event *events) noexcept nogil:
        """Wait for events, until something is due."""
        cdef int ms = self._wait_ms()
        cdef uint64_t at = self.w.rest_at, now
        cdef timespec most
        if at == 0 or ms == 0:
            return epoll_wait(self.w.epoll, events, EVENTS, ms)
        now = clock_ns()
        most.tv_sec = 0
        most.tv_nsec = <long> (at - now) if at > now else 0
        return epoll_pwait2(self.w.epoll, events, EVENTS, &most)

    cdef int _wait_ms(self) noexcept nogil:
        """Milliseconds to wait at most, -1: for ever."""
        cdef int wait = timer_wait_ms(self.w.timers, self.w.now)
        if self.w.wire.more or (self.w.ready_head != FLOW_NONE and not self.w.wire.blocked):
            return 0
        wait = self._sooner(self._sooner(wait, self.slow_at), self.w.acknowledge_at)
        return self._sooner(wait, self.links[1].wake_at) if self.faulty else wait

    cdef inline int _sooner(self, int wait, uint64_t at) noexcept nogil:
        """The earlier of a time to wait, ms (-1: for ever), and a time, ns (0: none)."""
        cdef int until
        if at == 0:
            return wait
        until = 0 if at <= self.w.now else <int> ((at - self.w.now) // 1000000) + 1
        return until if wait < 0 or until < wait else wait

    cdef void _continue(self) noexcept nogil:
        """Give the flows that wait for their next share one; those that had one go to the end."""
        cdef int _i
        cdef Worker *w = &self.w
        cdef uint32_t last = w.ready_tail, index
        cdef Flow *flow
        for _i in range(CONTINUES):
            flow = worker_next(w)
            if flow == NULL:
                return
            index = flow.index
            if flow.kind == FLOW_TCP:
                tcp_continue(w, flow)
            elif flow.kind == FLOW_SPLICE:
                splice_continue(w, flow)
            else:
                udp_continue(w, flow)
            if index == last:
                return

    cdef void _frames(self) noexcept nogil:
        """Take what the link has and serve it.

        While a bulk transfer keeps frames coming, the next batch is taken before the last one is acknowledged: fewer,
        larger acknowledgements leave the guest more time to send. Where one frame came last time, and the link had
        nothing in the turn before this one, one is likely again: then none is asked for in vain.
        """
        cdef uint32_t size, delivered = 0, batches = 0
        if self.taken == 1 and not self.busy:
            self.taken = 0
            self._batch(1)
        else:
            self.taken = 0
            while delivered < TURN:
                if self._batch(LINK_BATCH) == 0:
                    break
                size = tcp_deliver(&self.w)
                batches += 1
                if size < BULK and not (self.w.pressed and batches < RUSH):
                    break
                delivered += size
        tcp_flush(&self.w)

    cdef int _batch(self, int limit) noexcept nogil:
        """Take at most `limit` frames and serve them, but for acknowledgements; returns how many."""
        cdef int _i
        cdef Worker *w = &self.w
        cdef Frame[LINK_BATCH] frames
        cdef FrameRef[LINK_BATCH] refs
        cdef FrameRef *ref
        cdef int n = w.link.receive(w.link, frames, limit)
        cdef int i, kind
        if n < 0:
            if w.wire.flush != NULL:
                self._lost(-n)
            else:
                self.failed = -n
            return 0
        self.taken += n
        self.unpaused = self.unpaused + n if n == LINK_BATCH or w.wire.more else 0
        w.pressed = self.unpaused >= PRESSED
        for i in range(n):
            ref = &refs[i]
            kind = parse_frame(&frames[i], ref)
            if kind == KIND_FRAGMENT:
                count(w, C_FRAGMENTS_IN)
                kind = reassemble(w, ref)
                if kind == -C_FRAGMENTS_IN:  # kept
                    continue
            if kind < 0:
                count(w, -kind)
                continue
            if ref.frame != NULL and memcmp(w.guest_mac, ref.frame + 6, 6) != 0 and not ref.frame[6] & 1 \
                    and is_guest(w, ref):
                memcpy(w.guest_mac, ref.frame + 6, 6)
            if ref.version:
                learn(w, ref)
            if kind == KIND_TCP:
                tcp_frame(w, ref)
            elif kind == KIND_UDP:
                udp_frame(w, ref)
            elif kind == KIND_ECHO:
                icmp_frame(w, ref)
            elif ref.frame == NULL or ref.length > SLOW_LENGTH:
                count(w, C_DROP_SLOW)
            else:
                self._slow(ref)
        udp_flush(w)
        return n

    cdef void _lost(self, int error) noexcept with gil:
        """Tell Python that the client of a stream link is gone; it takes its descriptor."""
        try:
            self.on_lost(error, stream_rest(self.w.wire, error))
        except BaseException:
            count(&self.w, C_SLOW_ERRORS)
        if self.w.wire.fd >= 0:  # whatever it did: not the same again
            self.detach()

    cdef void _slow(self, const FrameRef *ref) noexcept nogil:
        """Hand a frame to the slow path, if its kind has not used up the time that it may take."""
        cdef int kind = ref.version // 2 - 1 if ref.version else 0
        cdef uint64_t start = clock_ns(), paid, taken
        paid = (start - self.slow_paid[kind]) // SLOW_SHARE
        self.slow_paid[kind] = start
        self.slow_spent[kind] -= paid if paid < self.slow_spent[kind] else self.slow_spent[kind]
        if self.slow_spent[kind] >= SLOW_BURST_NS:
            count(&self.w, C_DROP_SLOW_BUDGET)
            return
        self._slow_frame(ref)
        taken = clock_ns() - start
        self.slow_spent[kind] += taken if taken < SLOW_MOST_NS else SLOW_MOST_NS

    cdef void _slow_frame(self, const FrameRef *ref) noexcept with gil:
        """Hand a frame to the slow path and send what it answers."""
        count(&self.w, C_SLOW_IN)
        try:
            self._answer(self.slow.on_frame(<bytes> ref.frame[:ref.length], self.w.now))
            self._slow_timer()
        except BaseException:
            count(&self.w, C_SLOW_ERRORS)

    cdef void _slow_timeout(self) noexcept with gil:
        self.slow_at = self.w.now + RETRY_NS  # if it fails
        try:
            self._answer(self.slow.on_timeout(self.w.now))
            self._slow_timer()
        except BaseException:
            count(&self.w, C_SLOW_ERRORS)

    cdef void _tell_notices(self) noexcept with gil:
        """Tell what has run out or cannot be, each once."""
        cdef uint32_t news = self.w.notices & ~self.told
        self.told |= news
        if self.on_notice is None:
            return
        try:
            for bit, what in ((NOTICE_FLOWS, "flows"), (NOTICE_DESCRIPTORS, "descriptors"),
                              (NOTICE_HALF_OPEN, "half-open"), (NOTICE_AFTER_FIN, "data-after-fin")):
                if news & <uint32_t> bit:
                    self.on_notice(what)
        except BaseException:
            count(&self.w, C_SLOW_ERRORS)

    def _slow_timer(self):
        at = self.slow.next_timeout()
        self.slow_at = 0 if at is None else at

    def _answer(self, list frames):
        cdef bytes frame
        cdef vnet_hdr vnet
        cdef uint8_t *out
        memset(&vnet, 0, sizeof(vnet))
        for frame in frames:
            if PyBytes_GET_SIZE(frame) > FRAME_MAX:
                raise ValueError("frame too long")
            out = self.w.link.reserve(self.w.link)
            memcpy(out, PyBytes_AS_STRING(frame), PyBytes_GET_SIZE(frame))
            if self.w.link.commit(self.w.link, <uint32_t> PyBytes_GET_SIZE(frame), &vnet) == 0:
                count(&self.w, C_SLOW_OUT)

    cdef void _python(self, uint32_t index) noexcept with gil:
        """Call what watches a descriptor; signal handlers run here too."""
        try:
            self.watched[index][1]()
        except BaseException:
            count(&self.w, C_SLOW_ERRORS)
