"""The TCP machine against a model of both its ends: any sequence of events, and nothing is lost, invented or stuck.

The guest is a small independent TCP: it sends numbered bytes, keeps what comes out of order, and acknowledges; it takes
nothing, no acknowledgement either, of a segment outside its window (RFC 9293 §3.10.7.4), and may withdraw that. The
host is a pair of queues. Between guest and machine segments are lost, repeated and overtaken as hypothesis chooses; the
machine's timer and the guest's fire when nothing else moves. A byte's value is its number, so what arrives says where
it was.

The machine is driven as `tcp_io` does it; which function of it each method stands for is said there. `make fuzz` has
the same in Cython (`tests/fuzz/tcp.pyx`), which also has reads without SO_PEEK_OFF.
"""

import os
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bucatini.datapath.tcp import Machine

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
MS = 1_000_000
ISS, IRS = 0xFFFFF000, 0xFFFFFE00  # both wrap early
MSS = 100
OUR_MSS = 1460
SYN_OPTIONS = bytes([2, 4, 0, 112, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 0])  # 12 of the MSS are for timestamps
SHIFT = 7  # of our window
BOUND = 4096
EXAMPLES = int(os.environ.get("BUCATINI_MODEL", "300"))  # connections; `make soak` makes more
OVER = 256  # bytes that may be held beyond it: windows are rounded up
SHARE = 3  # segments to the guest in one turn
END, NONE = 0, -1  # of a read: no more comes, none is there now
PATIENCE = 8  # timeouts without progress; after some more of them it is right to give the guest up
MORE = 3  # when nothing is lost any more


class Segment(NamedTuple):
    """Between the two; `seq` and `ack` count from the first byte after SYN."""

    flags: int
    seq: int
    ack: int
    length: int
    window: int
    options: bytes = b""


class Guest:
    """A TCP that sends what it is told, and takes what comes."""

    def __init__(self) -> None:
        self.una = self.nxt = 0  # sending
        self.queued = 0  # bytes that the application has written so far
        self.closed = self.fin_acked = False
        self.window = 65535  # of the machine
        self.edge = 65535  # its right edge: it must not move to the left
        self.rcv_nxt = 0
        self.kept: list[tuple[int, int]] = []
        self.fin_at: int | None = None  # of the machine
        self.room = 2000  # receive buffer
        self.unread = 0
        self.squeezed = False  # it has no room, and drops what comes
        self.clock = 0

    def window_now(self) -> int:
        return 0 if self.squeezed else max(0, self.room - self.unread)

    def timestamps(self) -> bytes:
        self.clock += 1
        return bytes([1, 1, 8, 10]) + self.clock.to_bytes(4, "big") + bytes(4)

    def sack(self) -> bytes:
        data = b"".join(
            ((ISS + 1 + edge) & 0xFFFFFFFF).to_bytes(4, "big") for range_ in self.kept[:3] for edge in range_
        )
        return bytes([1, 1, 5, 2 + len(data)]) + data if data else b""

    def segment(self, flags: int, seq: int, length: int) -> Segment:
        options = self.timestamps() + (self.sack() if not length else b"")
        ack = self.rcv_nxt + (self.fin_at == self.rcv_nxt)
        return Segment(flags | ACK, seq, ack, length, self.window_now(), options)

    def acknowledgement(self) -> Segment:
        return self.segment(0, self.nxt, 0)

    def data(self, *, again: bool = False) -> Segment | None:
        """The next segment, or the oldest one again."""
        start = self.una if again else self.nxt
        length = min(MSS, self.queued - start, max(0, self.edge - start))
        fin = self.closed and start + length >= self.queued and start + length <= self.edge
        if start > self.queued:
            start, length = self.queued, 0  # only the FIN is missing
            fin = self.closed
        if length <= 0 and not fin:
            return None
        self.nxt = max(self.nxt, start + length + fin)
        return self.segment(FIN if fin else 0, start, max(0, length))

    def accepts(self, segment: Segment) -> bool:
        """Whether any of it is in the window."""
        window, size = self.window_now(), segment.length + bool(segment.flags & FIN)
        at = segment.seq - self.rcv_nxt - (self.fin_at == self.rcv_nxt)
        return 0 <= at < max(window, size == 0) or 0 <= at + size - 1 < window

    def take(self, segment: Segment) -> bool:
        """Process a segment of the machine; returns whether it is to be acknowledged."""
        if not self.accepts(segment):
            return True
        if segment.flags & ACK:
            self.una = max(self.una, segment.ack)
            self.fin_acked = self.una > self.queued and self.closed
            self.edge = max(self.edge, segment.ack + segment.window)
        end = segment.seq + segment.length
        if segment.flags & FIN:
            self.fin_at = end
        # Only what the buffer has room for
        end = min(end, self.rcv_nxt + self.window_now())
        if end > self.rcv_nxt:
            self.kept.append((max(segment.seq, self.rcv_nxt), end))
            self.kept.sort()
            merged: list[tuple[int, int]] = []
            for first, last in self.kept:
                if merged and first <= merged[-1][1]:
                    merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
                else:
                    merged.append((first, last))
            self.kept = merged
            if self.kept[0][0] <= self.rcv_nxt:
                self.unread += self.kept[0][1] - self.rcv_nxt
                self.rcv_nxt = self.kept.pop(0)[1]
        return segment.length > 0 or bool(segment.flags & FIN)


class Connection(RuleBasedStateMachine):
    """Guest, machine and host of one connection."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.patience = PATIENCE
        self.machine = Machine()
        self.guest = Guest()
        self.to_machine: deque[Segment] = deque()
        self.to_guest: deque[Segment] = deque()
        # Host's end
        self.host_takes = 1 << 30  # bytes that its socket will still take
        self.pool = 1 << 30  # bytes that may be held
        self.received = 0  # bytes that the host got
        self.held = 0
        self.kept: set[int] = set()  # numbers of bytes that came out of order
        self.host_written = 0  # by the host's application
        self.host_una = 0  # discarded from the socket
        self.mark = 1 << 30  # where its urgent byte is
        self.shut = self.finished = False
        # What `tcp_io` keeps of the flow
        self.readable = self.hangup = self.urgent = self.queued = self.late = self.peeking = False
        self.offset = 0  # where the next read begins, if peeking
        self.blocked = False  # the link
        self.armed = 0  # its timer; 0: it is not
        # and in the batch
        self.batch: set[str] = set()  # what is asked for
        self.bytes = self.segments = self.discard = 0
        self.edge = 0  # right edge that the machine promised
        self.opened = False

    @initialize(by=st.sampled_from(["guest", "host", "both"]))
    def opens(self, by: str) -> None:
        """The connection is opened by the guest, by a forward, or by both at the same time."""
        self.opened = True
        if by == "guest":
            self.machine.from_guest(
                seq=IRS, window=65535, options=SYN_OPTIONS, iss=ISS, our_mss=OUR_MSS, bound=BOUND, now=self.now
            )
            self.machine.connected(self.now)
            self.arm()
            self._feed(self.guest.acknowledgement())
            self.flush()
            return
        self.machine.to_guest(iss=ISS, our_mss=OUR_MSS, bound=BOUND, now=self.now)
        if by == "both":
            assert self.machine.segment(SYN, seq=IRS, options=SYN_OPTIONS, now=self.now) == {"synack"}
        said = self.machine.segment(SYN | ACK, seq=IRS, ack=ISS + 1, options=SYN_OPTIONS, now=self.now)
        assert {"ack", "pump"} <= said
        self.guest.edge = 0  # until this acknowledgement has arrived
        self.act(said)
        self.flush()
        self.guest.take(self.to_guest.popleft())

    # The machine's numbers

    def state(self, name: str) -> int:
        return self.machine.state()[name]

    def seq(self, name: str) -> int:
        value = (self.state(name) - ISS - 1) & 0xFFFFFFFF
        return value - (1 << 32) if value > 1 << 31 else value

    def rcv_nxt(self) -> int:
        return (self.state("rcv_nxt") - IRS - 1) & 0xFFFFFFFF

    # Between them

    def emit(self, flags: int, seq: int, length: int = 0) -> None:
        field = self.machine.window()
        ack = self.rcv_nxt()
        assert ack <= self.guest.nxt, "acknowledged what was never sent"
        assert self.bytes == 0, "acknowledged what nobody has taken"
        edge = ack + (field << SHIFT)
        assert edge >= self.edge, "the window was shrunk"
        self.edge = edge
        options = self.machine.options(blocks=length == 0, now=self.now)
        self.late = False
        self.to_guest.append(Segment(flags | ACK, seq, ack, length, field << SHIFT, options))

    def emit_acknowledgement(self) -> None:
        seq = (self.machine.ack_seq() - ISS - 1) & 0xFFFFFFFF
        self.emit(0, seq)

    def arm(self) -> None:
        """`timer_arm`: to an earlier time it is moved, to a later one it moves itself."""
        deadline = self.state("deadline")
        if deadline and (not self.armed or self.armed > deadline):
            self.armed = deadline

    def peek(self, start: int, size: int) -> int:
        """How much the socket has from `start` on, END or NONE; a read ends at an urgent mark."""
        if start != self.host_una and not self.peeking:
            self.peeking, self.offset = True, start
        assert start == (self.offset if self.peeking else self.host_una), "read from another place"
        length = min(size, (self.mark if start < self.mark else self.host_written) - start, self.host_written - start)
        self.offset = start + length
        return length or (END if self.hangup else NONE)

    def pump(self) -> bool:
        """`pump`: send as far as the guest's window and the share of a turn go; whether a segment left."""
        used = 0
        while self.readable:
            room = min(self.machine.room(), self.state("mss"))
            if room == 0:
                self.machine.blocked(self.now)
                break
            if used == SHARE or self.blocked:
                self.queued = True
                break
            start = self.seq("snd_nxt")
            length = self.peek(start, room)
            if length > 0:
                used += 1
                fin = length < room and self.hangup and start + length == self.host_written
                self.emit(FIN if fin else 0, start, length)
                self.machine.sent(length, self.now)
                if fin:
                    self.machine.eof(self.now)
                self.readable = not fin and (length == room or self.hangup or self.urgent)
            elif length == END:
                used += 1
                self.readable = False
                self.machine.eof(self.now)
                self.emit(FIN, self.seq("snd_max") - 1)
            else:
                self.readable = False
                self.machine.drained()
        return used > 0

    def repair(self) -> None:
        """`repair`: holes, as many as the share of a turn allows."""
        last = self.seq("snd_nxt")
        for _ in range(SHARE):
            hole = self.machine.hole()
            if hole is None:
                break
            seq, length = (hole[0] - ISS - 1) & 0xFFFFFFFF, min(hole[1], self.state("mss"))
            assert self.host_una <= seq
            assert seq + length <= self.host_written, "sent again what is not there"
            if self.peeking and seq != last:
                self.offset = seq
            length = self.peek(seq, length)
            if length <= 0:
                break
            last = seq + length
            self.emit(0, seq, length)
            self.machine.repaired(hole[0], length)
        self.offset = self.seq("snd_nxt")

    def act(self, actions: set[str], segment: Segment | None = None) -> None:
        """`tcp_frame`, behind the machine."""
        if "abort" in actions or "new" in actions:
            raise AssertionError(f"the connection was given up: {actions}")
        if "keep" in actions and segment is not None:
            offset, length = self.machine.accepted()
            length = length // 2 if self.pool < BOUND else length
            self.kept |= set(range(segment.seq + offset, segment.seq + offset + length))
            self.machine.kept((IRS + 1 + segment.seq + offset) & 0xFFFFFFFF, length)
        if "accept" in actions and segment is not None:
            offset, length = self.machine.accepted()
            assert segment.seq + offset == self.received + self.held + self.bytes, "a hole or a repetition"
            self.bytes += length
            self.segments += 1
        if "discard" in actions:
            self.discard += self.machine.discarded()
        if "fetch" in actions:
            self.fetch()
        self.batch |= actions
        if actions & {"fin", "ack"}:
            self.hand_over()
        if "fin" in actions:
            self.emit(FIN, self.seq("snd_max") - 1)
        if "ack" in actions:
            self.emit_acknowledgement()
            self.batch -= {"ack", "ack_batch"}

    def flush(self) -> None:
        """`flush_entry`: the batch is through."""
        asked, self.batch = self.batch, set()
        if self.finished or not asked:
            return
        self.hand_over()
        self.host_una += self.discard
        self.discard = 0
        assert self.host_una <= self.host_written
        self.offset = max(self.offset, self.host_una)
        if "rewind" in asked:
            self.readable = True
            self.offset = self.seq("snd_nxt")
        if "repair" in asked:
            self.repair()
        left = "pump" in asked and not self.queued and self.pump()
        self.settle("ack_batch" in asked and not left and not self.acknowledge_later())
        self.segments = 0

    def acknowledge_later(self) -> bool:
        """Whether the acknowledgement waits for an answer."""
        window = (self.state("rcv_adv") - self.state("rcv_nxt")) & 0xFFFFFFFF
        ends = self.state("flags") & 0x3  # TF_GUEST_FIN | TF_HOST_EOF
        later = self.segments == 1 and not self.late and not self.held and not ends and window >= OUR_MSS
        self.late = self.late or later
        return later

    def settle(self, ack: bool) -> None:
        """`settle`: shut, acknowledge, close."""
        actions = self.machine.held(self.held)
        if "shutdown" in actions:
            assert self.held == 0
            self.shut = True
        if ack or "ack" in actions:
            self.emit_acknowledgement()
        if "close" in actions:
            self.finished = True
        else:
            self.arm()

    def hand_over(self) -> None:
        """`deliver`: the socket takes what it does of the batch's payload, the overflow the rest, or it goes back."""
        taken = 0 if self.held else min(self.bytes, self.host_takes)
        self.host_takes -= taken
        self.received += taken
        added = min(self.bytes - taken, max(0, min(BOUND + OVER, self.pool) - self.held))
        self.held += added
        refused = self.bytes - taken - added
        if refused:
            self.machine.refused(refused)
            if self.state("kept")["count"] == 0:  # type: ignore[index]
                self.kept.clear()
        self.bytes = 0
        self.machine.holds(self.held)

    def fetch(self) -> None:
        """`fetch`: a hole is filled."""
        self.hand_over()
        start = self.received + self.held
        length = self.machine.fetch()
        assert set(range(start, start + length)) <= self.kept, "bytes that never came"
        self.held += length  # it has its place in the pool already
        self.drain()

    def drain(self) -> None:
        """`overflow_drain`: the socket takes what it does of what is held."""
        taken = min(self.held, self.host_takes)
        self.host_takes -= taken
        self.held -= taken
        self.received += taken
        self.machine.holds(self.held)

    def host_event(self) -> None:
        """`tcp_event`: the socket has something, or takes something."""
        if self.finished:
            return
        self.drain()
        if self.readable and not self.queued:
            self.pump()
        self.settle(False)

    def timer(self) -> None:
        """`tcp_timer`."""
        self.now, self.armed = max(self.now, self.armed), 0
        if self.now >= self.state("deadline"):
            actions = self.machine.timeout(self.now)
            assert "abort" not in actions, "the connection was given up"
            if "fin" in actions:
                self.emit(FIN, self.seq("snd_max") - 1)
            if "probe" in actions:
                self.emit(0, self.seq("snd_una") - 1)
            if "rewind" in actions:
                self.readable = True
                self.offset = self.seq("snd_nxt")
                self.pump()
            if "repair" in actions:
                self.repair()
            assert self.state("deadline") > self.now, "a timer that has fired is due again at once"
        self.arm()

    def _feed(self, segment: Segment) -> None:
        """Give a segment to the machine, as one of a batch."""
        if self.finished:
            return
        actions = self.machine.segment(
            segment.flags,
            seq=IRS + 1 + segment.seq,
            ack=ISS + 1 + segment.ack,
            length=segment.length,
            window=segment.window,
            options=segment.options,
            now=self.now,
        )
        self.act(actions, segment)

    # What may happen

    @rule(size=st.integers(1, 600))
    def guest_writes(self, size: int) -> None:
        if not self.guest.closed:
            self.guest.queued += size
            self.guest_sends()

    @rule()
    def guest_closes(self) -> None:
        if not self.guest.closed:
            self.guest.closed = True
            self.guest_sends()

    def guest_sends(self) -> None:
        while self.guest.nxt < self.guest.queued + self.guest.closed and (segment := self.guest.data()) is not None:
            self.to_machine.append(segment)

    @rule(size=st.integers(1, 2000))
    def guest_reads(self, size: int) -> None:
        before = self.guest.unread
        self.guest.unread = max(0, before - size)
        if before > self.guest.unread:
            self.to_machine.append(self.guest.acknowledgement())

    @rule()
    def guest_is_squeezed(self) -> None:
        """Its window closes over what is in flight, or opens again."""
        self.guest.squeezed = not self.guest.squeezed
        self.to_machine.append(self.guest.acknowledgement())

    @rule(size=st.integers(1, 600), urgent=st.booleans())
    def host_writes(self, size: int, urgent: bool) -> None:
        if not self.hangup and not self.finished:
            if urgent:
                self.mark, self.urgent = self.host_written + size // 2, True
            self.host_written += size
            self.readable = True
            self.host_event()

    @rule()
    def host_closes(self) -> None:
        if not self.hangup and not self.finished:
            self.hangup = self.readable = True
            self.host_event()

    @rule(takes=st.sampled_from([0, 100, 1 << 30]))
    def host_reads(self, takes: int) -> None:
        """The host's socket takes so much from now on."""
        self.host_takes = takes
        self.host_event()

    @rule(short=st.booleans())
    def others_hold(self, short: bool) -> None:
        """The others have the rest of the pool, or give it back."""
        self.pool = self.held if short else 1 << 30

    @rule()
    def link_is_blocked(self) -> None:
        self.blocked = not self.blocked

    @rule()
    def turn(self) -> None:
        """`tcp_continue`: what has used up its share goes on."""
        if self.queued and not self.blocked and not self.finished:
            self.queued = False
            self.pump()
            self.settle(False)

    @rule()
    def answer_is_late(self) -> None:
        """`tcp_acknowledge`: no answer has come to carry the acknowledgement."""
        if self.late and not self.finished:
            self.emit_acknowledgement()

    @precondition(lambda self: self.to_machine)
    @rule(fates=st.lists(st.sampled_from(["arrives"] * 6 + ["lost", "twice", "overtaken"]), min_size=1, max_size=4))
    def guests_segments(self, fates: list[str]) -> None:
        """A batch of them."""
        for fate in fates[: len(self.to_machine)]:
            segment = self.to_machine.popleft()
            if fate == "overtaken":
                self.to_machine.append(segment)
            elif fate != "lost":
                self._feed(segment)
                if fate == "twice":
                    self._feed(segment)
        self.flush()
        self.guest_sends()

    @precondition(lambda self: self.to_guest)
    @rule(fate=st.sampled_from(["arrives"] * 6 + ["lost", "twice", "overtaken"]))
    def machines_segment(self, fate: str) -> None:
        segment = self.to_guest.popleft()
        if fate == "overtaken":
            self.to_guest.append(segment)
        elif fate != "lost":
            for _ in range(1 + (fate == "twice")):
                if self.guest.take(segment):
                    self.to_machine.append(self.guest.acknowledgement())
            self.guest_sends()

    @rule()
    def time_passes(self) -> None:
        """Both timers fire, if there is something to be sent again."""
        self.answer_is_late()
        impatient = self.state("retries") >= self.patience or self.state("probes") >= PATIENCE
        if not self.finished and not impatient:
            if self.armed < self.state("deadline"):
                self.timer()
            self.timer()
        again = self.guest.data(again=True) if self.guest.una < self.guest.nxt else None
        if again is not None:
            self.to_machine.append(again)
        elif self.guest.una == self.guest.nxt < self.guest.queued + self.guest.closed:
            self.to_machine.append(self.guest.segment(0, self.guest.nxt - 1, 0))  # its window is closed: a probe

    # What holds

    @invariant()
    def nothing_is_invented(self) -> None:
        if not self.opened:
            return
        assert self.received + self.held <= self.guest.queued
        assert self.guest.rcv_nxt <= self.host_written

    @invariant()
    def what_is_acknowledged_was_taken(self) -> None:
        if not self.opened:
            return
        fin = bool(self.state("flags") & 1)
        assert self.rcv_nxt() == self.received + self.held + fin

    @invariant()
    def it_waits_for_a_window_only_with_data(self) -> None:
        if self.opened and not self.finished and not self.readable:
            assert not self.state("flags") & 0x40  # TF_PENDING
            assert self.seq("snd_nxt") >= self.host_written, "it has forgotten data"

    @invariant()
    def it_asks_for_a_window(self) -> None:
        if self.opened and not self.finished and self.readable and not self.queued and self.state("snd_wnd") == 0:
            nothing_sent = (
                self.state("snd_una") == self.state("snd_max") and not self.state("flags") & 0x2
            )  # TF_HOST_EOF
            assert not nothing_sent or self.state("deadline") <= self.now + 60_000 * MS

    @invariant()
    def a_timer_runs(self) -> None:
        if self.opened and not self.finished:
            assert 0 < self.armed <= self.state("deadline")

    def teardown(self) -> None:
        """From every state what the guest sends arrives, also if it has no room itself; then the connection ends."""
        if not self.opened:
            return
        self.patience = PATIENCE + MORE
        self.guest.closed, self.blocked = True, False
        self.host_takes = self.pool = 1 << 30
        self.turn()
        self.host_event()
        self.go_on(lambda: self.finished or self.guest.una > self.guest.queued)
        assert self.finished or self.guest.una > self.guest.queued, "what the guest sent is not acknowledged"
        self.guest.squeezed = False
        self.hangup = self.readable = True
        self.host_event()
        self.go_on(lambda: self.finished, reads=True)
        assert self.finished, (self.machine.state(), self.__dict__)
        assert self.received == self.guest.queued
        assert self.guest.rcv_nxt == self.host_written

    def go_on(self, until: Callable[[], bool], *, reads: bool = False) -> None:
        """Nothing is lost any more; `reads`: the guest has room."""
        for _ in range(400):
            if until():
                return
            self.guest_sends()
            while self.to_machine or self.to_guest:
                while self.to_machine:
                    self._feed(self.to_machine.popleft())
                self.flush()
                self.turn()
                while self.to_guest:
                    if self.guest.take(self.to_guest.popleft()):
                        self.to_machine.append(self.guest.acknowledgement())
                self.guest_sends()
            if reads:
                self.guest.unread = 0
            self.time_passes()
            if not self.to_machine:
                self.to_machine.append(self.guest.acknowledgement())


TestConnection = Connection.TestCase
TestConnection.pytestmark = [pytest.mark.timeout(120 + EXAMPLES // 10)]
TestConnection.settings = settings(max_examples=EXAMPLES, stateful_step_count=60)
