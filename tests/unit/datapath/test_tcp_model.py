"""The TCP machine against a model of both its ends: any sequence of events, and nothing is lost, invented or stuck.

The guest is a small independent TCP: it sends numbered bytes, keeps what comes out of order, and acknowledges. The host
is a pair of queues. Between guest and machine segments are lost, repeated and overtaken as hypothesis chooses; the
machine's timer and the guest's fire when nothing else moves. A byte's value is its number, so what arrives says
where it was.
"""

import os
from collections import deque
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
SYN_OPTIONS = bytes([2, 4, 0, 112, 4, 2, 8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 1, 3, 3, 0])  # 12 of the MSS are for timestamps
SHIFT = 7  # of our window
BOUND = 4096
EXAMPLES = int(os.environ.get("BUCATINI_MODEL", "300"))  # connections; `make soak` makes more
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
        self.clock = 0

    def timestamps(self) -> bytes:
        self.clock += 1
        return bytes([1, 1, 8, 10]) + self.clock.to_bytes(4, "big") + bytes(4)

    def sack(self) -> bytes:
        data = b"".join(
            ((ISS + 1 + edge) & 0xFFFFFFFF).to_bytes(4, "big") for range_ in self.kept[:3] for edge in range_
        )
        return bytes([1, 1, 5, 2 + len(data)]) + data if data else b""

    def segment(self, flags: int, seq: int, length: int) -> Segment:
        window = max(0, self.room - self.unread)
        options = self.timestamps() + (self.sack() if not length else b"")
        return Segment(flags | ACK, seq, self.rcv_nxt + (self.fin_at == self.rcv_nxt), length, window, options)

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

    def take(self, segment: Segment) -> bool:
        """Process a segment of the machine; returns whether it is to be acknowledged."""
        if segment.flags & ACK:
            self.una = max(self.una, segment.ack)
            self.fin_acked = self.una > self.queued and self.closed
            self.edge = max(self.edge, segment.ack + segment.window)
        end = segment.seq + segment.length
        if segment.flags & FIN:
            self.fin_at = end
        # Only what the buffer has room for
        limit = self.rcv_nxt + self.room - self.unread
        end = min(end, limit)
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
        self.received = 0  # bytes that the host got
        self.held = 0
        self.kept: set[int] = set()  # numbers of bytes that came out of order
        self.host_written = 0  # by the host's application
        self.host_una = 0  # discarded from the socket
        self.host_closed = self.shut = self.finished = self.aborted = False
        self.readable = False
        self.edge = 0  # right edge that the machine promised
        self.opened = False

    @initialize(by=st.sampled_from(["guest", "host", "both"]))
    def opens(self, by: str) -> None:
        """The connection is opened by the guest, by a forward, or by both at the same time."""
        self.opened = True
        if by == "guest":
            self.machine.from_guest(
                seq=IRS, window=65535, options=SYN_OPTIONS, iss=ISS, our_mss=1460, bound=BOUND, now=self.now
            )
            self.machine.connected(self.now)
            self._feed(self.guest.acknowledgement())
            return
        self.machine.to_guest(iss=ISS, our_mss=1460, bound=BOUND, now=self.now)
        if by == "both":
            assert self.machine.segment(SYN, seq=IRS, options=SYN_OPTIONS, now=self.now) == {"synack"}
        said = self.machine.segment(SYN | ACK, seq=IRS, ack=ISS + 1, options=SYN_OPTIONS, now=self.now)
        assert {"ack", "pump"} <= said
        self.guest.edge = 0  # until this acknowledgement has arrived
        self.act(said)
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
        edge = ack + (field << SHIFT)
        assert edge >= self.edge, "the window was shrunk"
        self.edge = edge
        options = self.machine.options(blocks=length == 0, now=self.now)
        self.to_guest.append(Segment(flags | ACK, seq, ack, length, field << SHIFT, options))

    def pump(self) -> None:
        """What `tcp_io` does when there may be room."""
        while self.readable:
            room = min(self.machine.room(), self.state("mss"))
            if room == 0:
                self.machine.blocked(self.now)
                return
            start = self.seq("snd_nxt")
            length = min(room, self.host_written - start)
            if length > 0:
                self.machine.sent(length, self.now)
                self.emit(0, start, length)
            elif self.host_closed:
                self.readable = False
                if "fin" in self.machine.eof(self.now):
                    self.emit(FIN, self.seq("snd_max") - 1)
            else:
                self.readable = False

    def act(self, actions: set[str], segment: Segment | None = None) -> None:
        """Carry the machine's actions out."""
        if "abort" in actions or "new" in actions:
            raise AssertionError(f"the connection was given up: {actions}")
        ack = "ack" in actions
        if "keep" in actions and segment is not None:
            offset, length = self.machine.accepted()
            self.kept |= set(range(segment.seq + offset, segment.seq + offset + length))
            self.machine.kept((IRS + 1 + segment.seq + offset) & 0xFFFFFFFF, length)
        if "accept" in actions and segment is not None:
            offset, length = self.machine.accepted()
            assert segment.seq + offset == self.received + self.held, "a hole or a repetition"
            self.host_gets(length)
        if "fetch" in actions:
            start = self.received + self.held
            length = self.machine.fetch()
            assert set(range(start, start + length)) <= self.kept, "bytes that never came"
            self.host_gets(length)
        if "discard" in actions:
            self.host_una += self.machine.discarded()
            assert self.host_una <= self.host_written
        if "rewind" in actions:
            self.readable = True
        if "repair" in actions:
            self.repair()
        if "fin" in actions:
            self.emit(FIN, self.seq("snd_max") - 1)
        if "probe" in actions:
            self.emit(0, self.seq("snd_una") - 1)
        if "pump" in actions or "rewind" in actions:
            self.readable = self.readable or self.seq("snd_nxt") < self.host_written
            self.pump()
        self.settle(ack or "ack_batch" in actions)

    def settle(self, ack: bool) -> None:
        actions = self.machine.held(self.held)
        if "shutdown" in actions:
            assert self.held == 0
            self.shut = True
        if ack or "ack" in actions:
            self.emit(0, self.seq("snd_max"))
        if "close" in actions:
            self.finished = True

    def repair(self) -> None:
        while (hole := self.machine.hole()) is not None:
            start, length = hole
            length = min(length, self.state("mss"))
            seq = (start - ISS - 1) & 0xFFFFFFFF
            assert self.host_una <= seq
            assert seq + length <= self.host_written, "sent again what is not there"
            self.machine.repaired(start, length)
            self.emit(0, seq, length)

    def host_gets(self, length: int) -> None:
        taken = 0 if self.held else min(length, self.host_takes)
        self.host_takes -= taken
        self.received += taken
        self.held += length - taken
        assert self.held <= BOUND

    def _feed(self, segment: Segment) -> None:
        """Give a segment to the machine."""
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

    @rule(size=st.integers(1, 600))
    def host_writes(self, size: int) -> None:
        if not self.host_closed and not self.finished:
            self.host_written += size
            self.readable = True
            self.pump()

    @rule()
    def host_closes(self) -> None:
        if not self.host_closed and not self.finished:
            self.host_closed = True
            self.readable = True
            self.pump()

    @rule(takes=st.sampled_from([0, 100, 1 << 30]))
    def host_reads(self, takes: int) -> None:
        """The host's socket takes so much from now on."""
        self.host_takes = takes
        self.drain()

    def drain(self) -> None:
        if self.held and self.host_takes and not self.finished:
            taken = min(self.held, self.host_takes)
            self.host_takes -= taken
            self.held -= taken
            self.received += taken
            self.settle(False)

    @precondition(lambda self: self.to_machine)
    @rule(fate=st.sampled_from(["arrives"] * 6 + ["lost", "twice", "overtaken"]))
    def guests_segment(self, fate: str) -> None:
        segment = self.to_machine.popleft()
        if fate == "overtaken":
            self.to_machine.append(segment)
        elif fate != "lost":
            self._feed(segment)
            if fate == "twice":
                self._feed(segment)
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
        deadline = self.state("deadline")
        impatient = self.state("retries") >= self.patience or self.state("probes") >= PATIENCE
        if deadline and not self.finished and not impatient:
            self.now = max(self.now, deadline)
            self.act(self.machine.timeout(self.now))
            deadline = self.state("deadline")
            assert self.finished or not deadline or deadline > self.now, "a timer that has fired is due again at once"
        again = self.guest.data(again=True) if self.guest.una < self.guest.nxt else None
        if again is not None:
            self.to_machine.append(again)

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

    def teardown(self) -> None:
        """From every state the connection ends, when nothing is lost any more and both sides close."""
        if not self.opened:
            return
        self.patience = PATIENCE + MORE
        self.guest.closed = self.host_closed = self.readable = True
        self.host_takes = 1 << 30
        self.drain()
        self.pump()
        for _ in range(400):
            if self.finished:
                break
            self.guest.unread = 0
            self.guest_sends()
            while self.to_machine or self.to_guest:
                while self.to_machine:
                    self._feed(self.to_machine.popleft())
                while self.to_guest:
                    if self.guest.take(self.to_guest.popleft()):
                        self.guest.unread = 0
                        self.to_machine.append(self.guest.acknowledgement())
                self.guest_sends()
            self.time_passes()
            if not self.to_machine:
                self.to_machine.append(self.guest.acknowledgement())
        assert self.finished, (self.machine.state(), self.__dict__)
        assert self.received == self.guest.queued
        assert self.guest.rcv_nxt == self.host_written


TestConnection = Connection.TestCase
TestConnection.pytestmark = [pytest.mark.timeout(120 + EXAMPLES // 10)]
TestConnection.settings = settings(max_examples=EXAMPLES, stateful_step_count=60)
