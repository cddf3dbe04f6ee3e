"""Timestamps, PAWS and selective acknowledgement of the TCP machine, as packet traces.

Numbers are relative as in test_tcp: the guest's first byte is 0, ours too. The guest offers everything.
"""

import pytest

from bucatini.datapath.tcp import Machine

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
GUEST, OURS = 1000, 5000
MS = 1_000_000
SECOND = 1000 * MS
MSS = 1448
TICK = 1 << 20  # ns of one step of our timestamps
SYN_OPTIONS = bytes([2, 4, 5, 0xB4, 4, 2, 8, 10]) + (100).to_bytes(4, "big") + bytes(4) + bytes([1, 3, 3, 7])
WITHOUT_SACK = bytes([2, 4, 5, 0xB4, 1, 3, 3, 7])


def timestamps(value: int) -> bytes:
    return bytes([1, 1, 8, 10]) + (value & 0xFFFFFFFF).to_bytes(4, "big") + bytes(4)


def blocks(*ranges: tuple[int, int]) -> bytes:
    """A selective acknowledgement by the guest."""
    data = b"".join((OURS + 1 + edge & 0xFFFFFFFF).to_bytes(4, "big") for range_ in ranges for edge in range_)
    return bytes([1, 1, 5, 2 + len(data)]) + data


class Trace:
    def __init__(self, options: bytes = SYN_OPTIONS, bound: int = 1 << 20) -> None:
        self.machine = Machine()
        self.now = 0
        self.machine.from_guest(seq=GUEST, window=65535, options=options, iss=OURS, bound=bound)
        self.machine.connected()
        self.guest(ACK, 0, 0)
        self.machine.window()

    def guest(
        self, flags: int, seq: int, ack: int, *, length: int = 0, window: int = 512, options: bytes = b""
    ) -> set[str]:
        return self.machine.segment(
            flags, seq=GUEST + 1 + seq, ack=OURS + 1 + ack, length=length, window=window, options=options, now=self.now
        )

    def keep(self, seq: int, length: int) -> None:
        self.machine.kept(GUEST + 1 + seq, length)

    def rcv_nxt(self) -> int:
        return self.machine.state()["rcv_nxt"] - GUEST - 1

    def told(self) -> list[tuple[int, int]]:
        """The blocks of our acknowledgement."""
        options = self.machine.options(now=self.now)[12:]
        words = [int.from_bytes(options[at : at + 4], "big") - GUEST - 1 for at in range(4, len(options), 4)]
        return list(zip(words[::2], words[1::2], strict=True))

    def hole(self) -> tuple[int, int] | None:
        found = self.machine.hole()
        return None if found is None else (found[0] - OURS - 1, found[1])

    def repair(self) -> list[tuple[int, int]]:
        """Send every hole of this pass again, in segments."""
        sent = []
        while (found := self.hole()) is not None:
            seq, length = found
            length = min(length, MSS)
            self.machine.repaired(OURS + 1 + seq, length)
            sent.append((seq, length))
        return sent


# Negotiation


def test_what_both_have_is_used() -> None:
    t = Trace()
    assert t.machine.state()["mss"] == MSS
    syn = t.machine.syn_options()
    assert syn[:12] == bytes([2, 4, 0xFF, 0xC8, 1, 3, 3, 7, 1, 1, 4, 2])
    assert syn[12:16] == bytes([1, 1, 8, 10])
    assert syn[20:] == (100).to_bytes(4, "big")  # the guest's timestamp comes back


def test_what_the_guest_does_not_have_is_not_used() -> None:
    t = Trace(WITHOUT_SACK)
    assert t.machine.syn_options() == bytes([2, 4, 0xFF, 0xC8, 1, 3, 3, 7])
    assert t.machine.options() == b""
    t.guest(ACK, 1000, 0, length=10)
    t.keep(1000, 10)
    assert t.machine.options() == b""
    # A guest that sends such options all the same is not listened to
    t.machine.sent(5000)
    assert t.guest(ACK, 0, 0, options=timestamps(5) + blocks((1000, 2000))) == set()
    assert t.hole() is None


# Timestamps


def test_our_timestamps_count_milliseconds_and_hide_the_clock() -> None:
    t = Trace()
    values = [int.from_bytes(t.machine.options(now=now)[4:8], "big") for now in (0, TICK, 1000 * TICK)]
    assert values == [OURS, OURS + 1, OURS + 1000]


def test_the_timestamp_of_the_oldest_unacknowledged_segment_comes_back() -> None:
    t = Trace()
    t.guest(ACK, 0, 0, length=100, options=timestamps(200))
    t.guest(ACK, 100, 0, length=100, options=timestamps(300))
    assert t.machine.options()[8:12] == (200).to_bytes(4, "big")  # RFC 7323 §4.3: we delay acknowledgements
    t.machine.window()  # both are acknowledged now
    t.guest(ACK, 200, 0, length=100, options=timestamps(400))
    assert t.machine.options()[8:12] == (400).to_bytes(4, "big")


def test_a_segment_out_of_order_does_not_move_it() -> None:
    t = Trace()
    t.guest(ACK, 500, 0, length=100, options=timestamps(900))
    assert t.machine.options()[8:12] == (100).to_bytes(4, "big")


def test_an_old_segment_is_not_taken_for_a_new_one() -> None:
    t = Trace()
    t.guest(ACK, 0, 0, length=100, options=timestamps(200))
    t.machine.window()
    assert t.guest(ACK, 100, 0, length=100, options=timestamps(199)) == {"ack"}
    assert t.rcv_nxt() == 100
    assert t.guest(ACK, 100, 0, length=100, options=timestamps(200)) == {"accept", "ack_batch"}


def test_timestamps_wrap() -> None:
    t = Trace(SYN_OPTIONS[:8] + (0xFFFFFFF0).to_bytes(4, "big") + SYN_OPTIONS[12:])
    assert t.guest(ACK, 0, 0, length=100, options=timestamps(0x10)) == {"accept", "ack_batch"}
    t.machine.window()
    assert t.guest(ACK, 100, 0, length=100, options=timestamps(0xFFFFFFF5)) == {"ack"}


def test_after_weeks_of_silence_timestamps_say_nothing() -> None:
    t = Trace()
    t.now = 25 * 86400 * SECOND
    assert "accept" in t.guest(ACK, 0, 0, length=100, options=timestamps(50))


def test_an_old_reset_is_a_reset() -> None:
    t = Trace()
    assert t.guest(RST, 0, 0, options=timestamps(1)) == {"abort"}


def test_a_segment_without_a_timestamp_is_taken() -> None:
    assert Trace().guest(ACK, 0, 0, length=10) == {"accept", "ack_batch"}


# Out of order from the guest


def test_what_is_kept_is_told_latest_first() -> None:
    t = Trace()
    for seq in (1000, 3000, 5000):
        assert t.guest(ACK, seq, 0, length=500) == {"ack", "keep"}
        assert t.machine.accepted() == (0, 500)
        t.keep(seq, 500)
    assert t.told() == [(5000, 5500), (1000, 1500), (3000, 3500)]
    t.guest(ACK, 1500, 0, length=100)
    t.keep(1500, 100)
    assert t.told() == [(1000, 1600), (3000, 3500), (5000, 5500)]


def test_four_blocks_do_not_fit_beside_timestamps() -> None:
    t = Trace()
    for seq in (1000, 2000, 3000, 4000, 5000):
        t.guest(ACK, seq, 0, length=10)
        t.keep(seq, 10)
    assert t.told() == [(5000, 5010), (1000, 1010), (2000, 2010)]
    assert len(t.machine.options()) == 40


def test_the_filled_hole_brings_what_was_kept() -> None:
    t = Trace()
    t.guest(ACK, 1000, 0, length=500)
    t.keep(1000, 500)
    t.guest(ACK, 3000, 0, length=500)
    t.keep(3000, 500)
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch", "fetch"}
    assert t.machine.fetch() == 500
    assert t.rcv_nxt() == 1500
    assert t.told() == [(3000, 3500)]
    assert t.guest(ACK, 1500, 0, length=1500) == {"accept", "ack_batch", "fetch"}
    assert t.machine.fetch() == 500
    assert t.rcv_nxt() == 3500
    assert t.told() == []


def test_what_fills_several_holes_ends_within_what_was_kept() -> None:
    t = Trace()
    for start in (100, 300):
        t.guest(ACK, start, 0, length=100)
        t.keep(start, 100)
    assert t.guest(ACK, 0, 0, length=350) == {"accept", "ack_batch", "fetch"}
    assert t.machine.fetch() == 50
    assert t.rcv_nxt() == 400
    assert t.told() == []


def test_of_a_segment_that_overlaps_only_what_is_missing_is_kept() -> None:
    t = Trace()
    t.guest(ACK, 1000, 0, length=500)
    t.keep(1000, 500)
    assert t.guest(ACK, 1200, 0, length=500) == {"ack", "keep"}
    assert t.machine.accepted() == (300, 200)
    t.keep(1500, 200)
    assert t.guest(ACK, 500, 0, length=700) == {"ack", "keep"}
    assert t.machine.accepted() == (0, 500)
    assert t.guest(ACK, 1100, 0, length=300) == {"ack"}  # all of it is there


def test_data_in_order_that_overlaps_what_is_kept() -> None:
    t = Trace()
    t.guest(ACK, 1000, 0, length=500)
    t.keep(1000, 500)
    assert t.guest(ACK, 0, 0, length=1200) == {"accept", "ack_batch", "fetch"}
    assert t.machine.accepted() == (0, 1200)
    assert t.machine.fetch() == 300
    assert t.rcv_nxt() == 1500


def test_data_in_order_that_covers_what_is_kept() -> None:
    t = Trace()
    t.guest(ACK, 1000, 0, length=100)
    t.keep(1000, 100)
    assert "fetch" in t.guest(ACK, 0, 0, length=2000)
    assert t.machine.fetch() == 0
    assert t.rcv_nxt() == 2000
    assert t.told() == []


def test_nothing_is_kept_beyond_the_window() -> None:
    t = Trace(bound=65536)
    edge = t.machine.state()["rcv_adv"] - GUEST - 1
    assert t.guest(ACK, edge - 10, 0, length=100) == {"ack", "keep"}
    assert t.machine.accepted() == (0, 10)
    assert t.guest(ACK, edge, 0, length=100) == {"ack"}


def test_more_holes_than_there_is_room_for() -> None:
    t = Trace()
    for number in range(8):
        assert "keep" in t.guest(ACK, 1000 + 100 * number, 0, length=50)
        t.keep(1000 + 100 * number, 50)
    assert t.guest(ACK, 5000, 0, length=50) == {"ack"}
    assert "keep" in t.guest(ACK, 1050, 0, length=10)  # what joins a range needs no room


# Selective acknowledgements by the guest


def sent(segments: int) -> Trace:
    t = Trace()
    t.machine.sent(segments * MSS)
    return t


def test_a_hole_is_sent_again_when_three_segments_arrived_behind_it() -> None:
    t = sent(10)
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 2 * MSS))) == set()
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 3 * MSS))) == set()
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 4 * MSS))) == {"repair"}
    assert t.repair() == [(0, MSS)]
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 5 * MSS))) == {"repair"}
    assert t.repair() == []  # once is enough
    assert "discard" in t.guest(ACK, 0, 5 * MSS)


def test_one_superframe_behind_the_hole_says_as_much_as_three_segments() -> None:
    t = sent(10)
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 6 * MSS))) == {"repair"}


def test_of_a_hole_that_ends_within_a_segment_no_more_is_sent() -> None:
    t = sent(10)
    assert t.guest(ACK, 0, 0, options=blocks((100, 6 * MSS), (6 * MSS + 50, 7 * MSS))) == {"repair"}
    assert t.repair() == [(0, 100), (6 * MSS, 50)]


def test_the_end_of_all_that_was_sent_says_enough() -> None:
    t = sent(2)
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 2 * MSS))) == {"repair"}
    assert t.repair() == [(0, MSS)]


def test_T11_our_fin_is_no_data_and_its_block_says_enough_too() -> None:
    t = sent(2)
    t.machine.eof()
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 2 * MSS + 2))) == set()  # beyond all that was sent
    assert t.guest(ACK, 0, 0, options=blocks((2 * MSS, 2 * MSS + 1))) == set()  # nothing but the FIN
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 2 * MSS + 1))) == {"repair"}
    assert t.repair() == [(0, MSS)]


def test_several_holes_are_filled_in_one_pass() -> None:
    t = sent(10)
    acknowledged = blocks((MSS, 2 * MSS), (3 * MSS, 4 * MSS), (6 * MSS, 8 * MSS))
    assert t.guest(ACK, 0, 0, options=acknowledged) == {"repair"}
    assert t.repair() == [(0, MSS), (2 * MSS, MSS), (4 * MSS, MSS), (5 * MSS, MSS)]


def test_a_hole_that_is_lost_again_is_sent_again_when_later_data_arrives() -> None:
    t = sent(10)
    t.guest(ACK, 0, 0, options=blocks((MSS, 10 * MSS)))
    assert t.repair() == [(0, MSS)]
    t.machine.sent(4 * MSS)
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 11 * MSS))) == {"repair"}
    assert t.repair() == [(0, MSS)]
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 11 * MSS))) == {"repair"}
    assert t.repair() == []


def test_recovery_ends_when_all_that_was_sent_at_its_beginning_arrived() -> None:
    t = sent(10)
    t.guest(ACK, 0, 0, options=blocks((MSS, 5 * MSS)))
    t.repair()
    assert "repair" in t.guest(ACK, 0, 5 * MSS, options=b"")
    assert "repair" not in t.guest(ACK, 0, 10 * MSS)
    t.machine.sent(3 * MSS)
    assert t.guest(ACK, 0, 10 * MSS, options=blocks((11 * MSS, 12 * MSS))) == set()


def test_after_a_timeout_only_the_holes_are_sent_again_and_after_two_everything() -> None:
    t = sent(10)
    t.guest(ACK, 0, 0, options=blocks((MSS, 2 * MSS)))
    t.now = t.machine.state()["deadline"]
    assert t.machine.timeout(t.now) == {"repair"}
    assert t.repair() == [(0, MSS)]
    t.now = t.machine.state()["deadline"]
    assert t.machine.timeout(t.now) == {"rewind", "pump"}  # the guest may have thrown it away (RFC 2018 §8)
    assert t.hole() is None
    assert t.machine.state()["snd_nxt"] == OURS + 1


@pytest.mark.parametrize(
    "nonsense",
    [
        blocks((-5000, -4000)),  # long acknowledged: a D-SACK (RFC 2883)
        blocks((0, MSS)),  # begins at the acknowledgement
        blocks((MSS, 20 * MSS)),  # never sent
        blocks((3 * MSS, 2 * MSS)),  # backwards
        blocks((MSS, MSS)),  # empty
        blocks((1 << 30, 3 << 30)),  # each number is beyond the one before, and the last before all
        bytes([5, 6, 0, 0, 0, 0, 1, 1]),  # cut
        bytes([5, 1]),
        bytes([5]),
    ],
)
def test_nonsense_in_a_selective_acknowledgement_is_passed_over(nonsense: bytes) -> None:
    t = sent(10)
    assert t.guest(ACK, 0, 0, options=nonsense) == set()
    assert t.hole() is None


def test_without_blocks_three_duplicates_go_back_to_the_beginning() -> None:
    t = sent(10)
    assert t.guest(ACK, 0, 0) == set()
    assert t.guest(ACK, 0, 0) == set()
    assert t.guest(ACK, 0, 0) == {"rewind", "pump"}


def test_our_fin_is_not_data() -> None:
    t = sent(3)
    t.machine.eof()
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 3 * MSS))) == {"repair"}  # that is all the data there is
    assert t.repair() == [(0, MSS)]
    assert t.guest(ACK, 0, 0, options=blocks((MSS, 3 * MSS + 1))) == {"repair"}
    assert t.repair() == []


def test_nothing_more_is_told_of_when_all_is_acknowledged() -> None:
    t = sent(10)
    t.machine.eof()
    t.guest(ACK, 0, 10 * MSS + 1)
    t.guest(ACK, 0, 10 * MSS + 1, options=blocks((20 * MSS, 21 * MSS)))
    assert t.machine.state()["sacked"]["count"] == 0
