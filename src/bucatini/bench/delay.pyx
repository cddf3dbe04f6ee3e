"""A delay line: frames from one tap leave at the other later, at a limited rate, and some never.

Each direction is a bottleneck link with a queue in front (tail drop), then a path of constant delay. What is lost,
and what is held back so that later frames overtake it, is drawn from a seeded generator (xorshift64*, Marsaglia 2003):
the same seed and the same frames lose the same ones.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from bucatini.datapath.syscalls cimport CLOCK_MONOTONIC, clock_gettime, read, ssize_t, timespec, write


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <poll.h>
    #include <time.h>
    """
    cdef struct pollfd:
        int fd
        short events
        short revents
    int ppoll(pollfd *fds, unsigned long count, const timespec *timeout, const void *mask)
    enum: POLLIN


cdef enum:
    FRAME = 9216  # bytes, the largest frame that can be carried
    READS = 64  # frames taken from one side before the other's turn


cdef struct Slot:
    uint64_t due  # ns
    uint32_t size


cdef struct Line:
    uint64_t delay, late  # ns, one way; what a reordered frame waits in addition
    uint64_t backlog  # ns of queue in front of the bottleneck, at most
    double ns_per_byte
    uint64_t busy_until
    uint64_t loss, reorder  # of 2**32
    uint64_t carried, dropped, lost, reordered


cdef struct Ring:  # frames on their way, in order of their time
    uint8_t *data
    Slot *slots
    uint32_t frame  # bytes for one
    uint32_t size, head, count


cdef inline uint64_t now() noexcept nogil:
    cdef timespec value
    clock_gettime(CLOCK_MONOTONIC, &value)
    return <uint64_t> value.tv_sec * 1000000000 + <uint64_t> value.tv_nsec


cdef inline uint64_t draw(uint64_t *state) noexcept nogil:
    """32 random bits."""
    cdef uint64_t x = state[0]
    x ^= x >> 12
    x ^= x << 25
    x ^= x >> 27
    state[0] = x
    return (x * <uint64_t> 0x2545F4914F6CDD1D) >> 32


cdef void push(Ring *ring, Line *line, const uint8_t *frame, uint32_t size, uint64_t due) noexcept nogil:
    cdef uint32_t at
    if ring.count == ring.size or size > ring.frame:
        line.dropped += 1
        return
    at = (ring.head + ring.count) % ring.size
    memcpy(ring.data + <size_t> at * ring.frame, frame, size)
    ring.slots[at].due = due
    ring.slots[at].size = size
    ring.count += 1


cdef void take(int fd, Line *line, Ring *main, Ring *late, uint64_t *random) noexcept nogil:
    """Frames that one side sent start on their way."""
    cdef uint8_t[FRAME] frame
    cdef uint64_t at, due
    cdef ssize_t size
    cdef int _i
    for _i in range(READS):
        size = read(fd, frame, FRAME)
        if size <= 0:
            return
        at = now()
        if line.busy_until < at:
            line.busy_until = at
        if line.busy_until - at > line.backlog:
            line.dropped += 1
            continue
        line.busy_until += <uint64_t> (size * line.ns_per_byte)
        if draw(random) < line.loss:
            line.lost += 1
            continue
        line.carried += 1
        due = line.busy_until + line.delay
        if draw(random) < line.reorder:
            line.reordered += 1
            push(late, line, frame, <uint32_t> size, due + line.late)
        else:
            push(main, line, frame, <uint32_t> size, due)


cdef void give(int fd, Ring *ring, uint64_t at) noexcept nogil:
    """Frames whose time has come arrive at the other side."""
    while ring.count and ring.slots[ring.head].due <= at:
        # A side that is down takes none: as on a wire, nobody hears of it
        write(fd, ring.data + <size_t> ring.head * ring.frame, ring.slots[ring.head].size)
        ring.head = (ring.head + 1) % ring.size
        ring.count -= 1


cdef uint64_t next_due(Ring *rings, int count) noexcept nogil:
    cdef uint64_t due = <uint64_t> -1
    cdef int i
    for i in range(count):
        if rings[i].count and rings[i].slots[rings[i].head].due < due:
            due = rings[i].slots[rings[i].head].due
    return due


def run(
    int left, int right, *, int mtu=1500, double delay, double rate, double backlog, double loss=0, double reorder=0,
    double late=0.001, uint64_t seed=1, double seconds,
):
    """Carry frames between two non-blocking taps for a time; returns carried, dropped, lost, reordered of each way.

    Args:
        mtu: of the path; at most 9000.
        delay: one way, seconds.
        rate: bits per second of each way, counted in bytes of Ethernet frames.
        backlog: seconds of queue that the bottleneck has.
        loss, reorder: probabilities, each frame by itself.
        late: what a reordered frame waits longer, seconds.
        seed: of the generator.
        seconds: how long to run.
    """
    cdef int[2] fds = [left, right]
    cdef Line[2] lines
    cdef Ring[4] rings  # of each direction: in time, late
    cdef pollfd[2] polls
    cdef uint64_t random = seed * <uint64_t> 0x9E3779B97F4A7C15 + 1
    cdef uint64_t end, at, due
    cdef timespec timeout
    cdef uint32_t size
    cdef int i
    # Small frames fill less of a path than full ones do: there is room for all of it in full frames, four times over
    size = <uint32_t> ((delay + late + backlog) * rate / 8 / mtu * 4) + 1024
    for i in range(4):
        rings[i].size = size
        rings[i].head = rings[i].count = 0
        rings[i].frame = (mtu + 14 + 63) // 64 * 64
        rings[i].data = <uint8_t *> calloc(size, rings[i].frame)
        rings[i].slots = <Slot *> calloc(size, sizeof(Slot))
        if rings[i].data == NULL or rings[i].slots == NULL:
            raise MemoryError
    for i in range(2):
        lines[i].delay = <uint64_t> (delay * 1e9)
        lines[i].late = <uint64_t> (late * 1e9)
        lines[i].backlog = <uint64_t> (backlog * 1e9)
        lines[i].ns_per_byte = 8e9 / rate
        lines[i].busy_until = 0
        lines[i].loss = <uint64_t> (loss * 4294967296.0)
        lines[i].reorder = <uint64_t> (reorder * 4294967296.0)
        lines[i].carried = lines[i].dropped = lines[i].lost = lines[i].reordered = 0
        polls[i].fd = fds[i]
        polls[i].events = POLLIN
    end = now() + <uint64_t> (seconds * 1e9)  # the memory is there
    with nogil:
        while True:
            at = now()
            if at >= end:
                break
            for i in range(2):
                give(fds[1 - i], &rings[2 * i], at)
                give(fds[1 - i], &rings[2 * i + 1], at)
            due = next_due(rings, 4)
            if due > end:
                due = end
            at = now()
            due = due - at if due > at else 0
            timeout.tv_sec = due // 1000000000
            timeout.tv_nsec = due % 1000000000
            if ppoll(polls, 2, &timeout, NULL) > 0:
                for i in range(2):
                    if polls[i].revents & POLLIN:
                        take(fds[i], &lines[i], &rings[2 * i], &rings[2 * i + 1], &random)
    for i in range(4):
        free(rings[i].data)
        free(rings[i].slots)
    return [(lines[i].carried, lines[i].dropped, lines[i].lost, lines[i].reordered) for i in range(2)]
