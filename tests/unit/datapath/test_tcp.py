"""The TCP machine, as packet traces: `guest(...)` is a segment of the guest at a literal time.

Numbers are relative: the guest's initial number is 1000, ours 5000; windows are scaled by 2**7 both ways.
"""

import pytest

from bucatini.datapath.tcp import Machine

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
GUEST, OURS = 1000, 5000
MS = 1_000_000
SECOND = 1000 * MS
OPTIONS = bytes([2, 4, 0xFF, 0xC8, 1, 3, 3, 7])  # MSS 65480, window scale 7
MSS_ONLY = bytes([2, 4, 5, 0xB4])  # 1460


class Trace:
    """A machine and the verbs of a trace."""

    def __init__(self, options: bytes = OPTIONS, iss: int = OURS, irs: int = GUEST, bound: int = 1 << 20) -> None:
        self.machine = Machine()
        self.options = options
        self.iss, self.irs, self.bound = iss, irs, bound
        self.now = 0

    def guest(self, flags: int, seq: int, ack: int | None = None, length: int = 0, window: int = 512) -> set[str]:
        """A segment; `seq` and `ack` count from the first byte after SYN."""
        return self.machine.segment(
            flags,
            seq=self.irs + 1 + seq,
            ack=0 if ack is None else self.iss + 1 + ack,
            length=length,
            window=window,
            options=self.options if flags & SYN else b"",
            now=self.now,
        )

    def keep(self, seq: int, length: int) -> None:
        """What came out of order found room."""
        self.machine.kept(self.irs + 1 + seq & 0xFFFFFFFF, length)

    def field(self, name: str) -> int:
        return self.machine.state()[name]

    def rcv_nxt(self) -> int:
        return (self.field("rcv_nxt") - self.irs - 1) & 0xFFFFFFFF

    def snd(self, name: str) -> int:
        return (self.field(name) - self.iss - 1) & 0xFFFFFFFF


def opened_by_guest(**kwargs: object) -> Trace:
    t = Trace(**kwargs)  # type: ignore[arg-type]
    t.machine.from_guest(seq=t.irs, window=65535, options=t.options, iss=t.iss, bound=t.bound)
    return t


def established(**kwargs: object) -> Trace:
    t = opened_by_guest(**kwargs)
    t.machine.connected()
    assert t.guest(ACK, 0, 0) == {"pump"}
    t.machine.window()
    return t


# Opening by the guest: CONNECTING, SYN-RECEIVED


def test_the_syn_is_answered_only_when_the_host_is_connected() -> None:
    t = opened_by_guest()
    assert t.machine.connected() == {"synack"}
    assert t.machine.syn_options() == bytes([2, 4, 0xFF, 0xC8, 1, 3, 3, 7])


def test_T03_a_repeated_syn_while_connecting_is_ignored() -> None:
    t = opened_by_guest()
    t.now = 1 * SECOND
    assert t.guest(SYN, -1) == set()
    t.now = 3 * SECOND
    assert t.guest(SYN, -1) == set()
    assert t.machine.connected(t.now) == {"synack"}
    assert t.guest(ACK, 0, 0) == {"pump"}


def test_a_syn_with_another_number_while_connecting_is_a_new_connection() -> None:
    t = opened_by_guest()
    assert t.guest(SYN, 77) == {"new"}


def test_a_reset_while_connecting_ends_the_connection() -> None:
    t = opened_by_guest()
    assert t.guest(RST, 5) == set()
    assert t.guest(RST, 0) == {"abort"}


def test_a_repeated_syn_gets_the_syn_ack_again() -> None:
    t = opened_by_guest()
    t.machine.connected()
    assert t.guest(SYN, -1) == {"synack"}


def test_the_syn_ack_is_repeated_with_backoff_and_then_given_up() -> None:
    t = opened_by_guest()
    t.machine.connected()
    deadlines = []
    for _ in range(6):
        t.now = t.field("deadline")
        deadlines.append(t.now // SECOND)
        assert t.machine.timeout(t.now) == {"synack"}
    assert deadlines == [1, 3, 7, 15, 31, 63]
    assert t.machine.timeout(t.field("deadline")) == {"abort", "rst"}


def test_a_wrong_acknowledgement_in_syn_received_is_answered_by_a_reset() -> None:
    t = opened_by_guest()
    t.machine.connected()
    assert t.guest(ACK, 0, 99) == {"rst_reply"}


def test_data_with_the_last_segment_of_the_handshake_is_accepted() -> None:
    t = opened_by_guest()
    t.machine.connected()
    assert t.guest(ACK | PSH, 0, 0, length=100) == {"pump", "accept", "ack_batch"}
    assert t.rcv_nxt() == 100


# Options


@pytest.mark.parametrize(
    ("options", "mss", "scaling"),
    [
        (b"", 536, False),
        (MSS_ONLY, 1460, False),
        (OPTIONS, 65480, True),
        (bytes([2, 4, 0, 1]), 88, False),  # absurdly small
        (bytes([2, 3, 5]), 536, False),  # bad length
        (bytes([2, 4, 5]), 536, False),  # cut
        (bytes([3, 3]), 536, False),
        (bytes([2, 0, 0, 0]), 536, False),  # length 0 must not loop
        (bytes([1, 1, 1]), 536, False),
        (bytes([0, 2, 4, 5, 0xB4]), 536, False),  # behind the end
        (bytes([8, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 0xB4]), 1448, False),  # timestamps take their part
        (bytes([253, 10, 0, 0, 0, 0, 0, 0, 0, 0, 2, 4, 5, 0xB4]), 1460, False),  # unknown one skipped
    ],
)
def test_options_of_the_syn(options: bytes, mss: int, scaling: bool) -> None:
    t = opened_by_guest(options=options)
    t.machine.connected()
    assert t.field("mss") == mss
    assert bool(t.field("flags") & 0x10) == scaling
    assert len(t.machine.syn_options()) == 4 + (4 if scaling else 0) + (12 if 8 in options[:1] else 0)


def test_a_window_scale_beyond_14_is_taken_as_14() -> None:
    assert opened_by_guest(options=bytes([3, 3, 200, 0])).field("snd_wscale") == 14


def test_the_window_of_the_syn_is_not_scaled_and_later_ones_are() -> None:
    t = opened_by_guest()
    assert t.field("snd_wnd") == 65535
    t.machine.connected()
    t.guest(ACK, 0, 0, window=1000)
    assert t.field("snd_wnd") == 1000 << 7


# Opening by the host: SYN-SENT


def opened_by_host() -> Trace:
    t = Trace()
    assert t.machine.to_guest(iss=t.iss) == {"syn"}
    return t


def test_a_connection_of_the_host_is_offered_with_all_options() -> None:
    t = opened_by_host()
    timestamps = bytes([1, 1, 8, 10]) + (OURS + 7).to_bytes(4, "big") + bytes(4)
    assert t.machine.syn_options(7 << 20) == OPTIONS + bytes([1, 1, 4, 2]) + timestamps


def test_the_guests_syn_ack_establishes() -> None:
    t = opened_by_host()
    assert t.guest(SYN | ACK, -1, 0) == {"ack", "pump"}
    assert t.machine.room() == 512  # not scaled in a SYN


def test_T04_the_syn_is_repeated_with_backoff_and_then_the_host_is_reset() -> None:
    t = opened_by_host()
    for _ in range(6):
        assert t.machine.timeout(t.field("deadline")) == {"syn"}
    assert t.machine.timeout(t.field("deadline")) == {"abort"}


def test_a_guest_that_refuses_resets_the_host() -> None:
    assert opened_by_host().guest(RST | ACK, 0, 0) == {"abort"}


def test_a_reset_that_acknowledges_nothing_is_ignored_in_syn_sent() -> None:
    t = opened_by_host()
    assert t.guest(RST, 0) == set()
    assert t.guest(RST | ACK, 0, 99) == set()


def test_a_wrong_acknowledgement_in_syn_sent_is_answered_by_a_reset() -> None:
    assert opened_by_host().guest(SYN | ACK, -1, 99) == {"rst_reply"}


def test_simultaneous_open() -> None:
    t = opened_by_host()
    assert t.guest(SYN, -1) == {"synack"}
    assert t.guest(SYN | ACK, -1, 0) == {"ack", "pump"}


# Data of the guest


def test_data_in_sequence_is_accepted_and_acknowledged_with_the_batch() -> None:
    t = established()
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch"}
    assert t.machine.accepted() == (0, 1000)
    assert t.guest(ACK, 1000, 0, length=500) == {"accept", "ack_batch"}
    assert t.rcv_nxt() == 1500


def test_T24_data_out_of_order_is_answered_by_a_duplicate_acknowledgement() -> None:
    t = established()
    for _ in range(3):  # it found no room
        assert t.guest(ACK, 1000, 0, length=1000) == {"ack", "keep"}
    assert t.rcv_nxt() == 0
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch"}
    assert t.rcv_nxt() == 1000


def test_repeated_data_is_acknowledged_and_not_accepted() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1000)
    assert t.guest(ACK, 0, 0, length=1000) == {"ack"}
    assert t.rcv_nxt() == 1000


def test_of_overlapping_data_only_the_new_part_is_accepted() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1000)
    assert t.guest(ACK, 600, 0, length=1000) == {"accept", "ack_batch"}
    assert t.machine.accepted() == (400, 600)
    assert t.rcv_nxt() == 1600


def test_data_beyond_the_window_is_cut_at_its_edge() -> None:
    t = established(bound=65536)
    edge = (t.field("rcv_adv") - t.field("rcv_nxt")) & 0xFFFFFFFF
    assert t.guest(ACK, 0, 0, length=edge - 10) == {"accept", "ack_batch"}
    assert t.guest(ACK | FIN, edge - 10, 0, length=100) == {"accept", "ack_batch", "ack"}
    assert t.machine.accepted() == (0, 10)
    assert t.rcv_nxt() == edge  # and its FIN is not in sequence


def test_sequence_numbers_wrap() -> None:
    t = established(irs=0xFFFFFFFF - 500, iss=0xFFFFFFF0)
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch"}
    assert t.rcv_nxt() == 1000
    t.machine.sent(1000)
    assert "discard" in t.guest(ACK, 1000, 1000)
    assert t.machine.discarded() == 1000


def test_data_taken_back_is_accepted_when_it_comes_again() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1000)
    t.guest(ACK | FIN, 1000, 0, length=500)
    t.machine.refused(700)
    assert t.rcv_nxt() == 800
    assert t.guest(ACK | FIN, 800, 0, length=700) == {"accept", "ack_batch"}
    assert t.rcv_nxt() == 1501


# The window towards the guest


def test_T22_the_window_is_the_bound_less_what_is_held() -> None:
    t = established()
    assert t.machine.window() << 7 == 1 << 20
    t.guest(ACK, 0, 0, length=1 << 20)
    t.machine.held(1 << 20)
    assert t.machine.window() == 0


def test_the_advertised_edge_never_moves_left() -> None:
    t = established()
    t.machine.window()
    edge = t.field("rcv_adv")
    t.machine.held(900_000)  # without any of it accepted: cannot happen, and still
    t.machine.window()
    assert t.field("rcv_adv") == edge


def test_T20_T21_a_window_update_is_sent_when_half_of_it_is_free_again() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1 << 20)
    assert t.machine.held(1 << 20) == set()
    t.machine.window()
    assert t.machine.held(1000_000) == set()
    assert t.machine.held(400_000) == {"ack"}


def test_a_probe_of_our_zero_window_is_answered() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1 << 20)
    t.machine.held(1 << 20)
    t.machine.window()
    assert t.guest(ACK, 1 << 20, 0, length=1) == {"ack"}
    assert t.rcv_nxt() == 1 << 20


# Data of the host


def test_acknowledged_data_is_discarded_from_the_host_socket() -> None:
    t = established()
    t.machine.sent(3000)
    assert t.guest(ACK, 0, 1000) == {"discard", "pump"}
    assert t.machine.discarded() == 1000
    assert t.guest(ACK, 0, 3000) == {"discard", "pump"}
    assert t.machine.discarded() == 2000


def test_room_is_the_guests_window_less_what_is_in_flight() -> None:
    t = established()
    assert t.machine.room() == 512 << 7
    t.machine.sent(1000)
    assert t.machine.room() == (512 << 7) - 1000
    t.machine.sent((512 << 7) - 1000)
    assert t.machine.room() == 0


def test_T21_no_sliver_is_sent_into_a_nearly_full_window() -> None:
    t = established()
    t.machine.sent((512 << 7) - 100)
    assert t.machine.room() == 0


def test_an_acknowledgement_of_what_was_never_sent_is_answered_and_ignored() -> None:
    t = established()
    t.machine.sent(1000)
    assert t.guest(ACK, 0, 2000) == {"ack"}
    assert t.snd("snd_una") == 0


def test_an_old_segment_does_not_move_the_window() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=1000)
    t.guest(ACK, 1000, 0, length=1000, window=100)
    t.guest(ACK, 0, 0, length=1000, window=500)
    assert t.field("snd_wnd") == 100 << 7


def test_an_overtaken_acknowledgement_does_not_move_the_window() -> None:
    t = established()
    t.machine.sent(2000, 0)
    t.guest(ACK, 0, 1000, window=100)
    t.guest(ACK, 0, 500, window=500)  # sent before that one
    assert t.field("snd_wnd") == 100 << 7


def test_T11_and_retransmission_with_backoff() -> None:
    t = established()
    t.machine.sent(1000, 0)
    times = []
    for _ in range(5):
        t.now = t.field("deadline")
        times.append(t.now // MS)
        assert t.machine.timeout(t.now) == {"rewind", "pump"}
        assert t.snd("snd_nxt") == 0
        t.machine.sent(1000, t.now)
    assert times == [200, 600, 1400, 3000, 6200]
    assert t.guest(ACK, 0, 1000) == {"discard", "pump"}
    assert t.field("retries") == 0


def test_a_guest_that_never_acknowledges_is_given_up() -> None:
    t = established()
    t.machine.sent(1000)
    for _ in range(12):
        assert t.machine.timeout(t.field("deadline")) == {"rewind", "pump"}
        t.machine.sent(1000)
    assert t.machine.timeout(t.field("deadline")) == {"abort", "rst"}


def test_three_duplicate_acknowledgements_make_it_send_again() -> None:
    t = established()
    t.machine.sent(5000)
    t.guest(ACK, 0, 1000)
    assert t.guest(ACK, 0, 1000) == set()
    assert t.guest(ACK, 0, 1000) == set()
    assert t.guest(ACK, 0, 1000) == {"rewind", "pump"}
    assert t.snd("snd_nxt") == 1000
    assert t.guest(ACK, 0, 1000) == set()  # a fourth changes nothing


def test_duplicate_acknowledgements_make_it_send_again_once_for_what_is_in_flight() -> None:
    """RFC 6582: a storm of them, and timeouts between, would else have everything sent again each time."""
    t = established()
    t.machine.sent(5000)
    for _ in range(3):
        t.guest(ACK, 0, 0)
    assert t.machine.timeout(t.field("deadline")) == {"rewind", "pump"}
    t.machine.sent(5000)
    for _ in range(100):
        assert t.guest(ACK, 0, 0) == set()
    t.guest(ACK, 0, 5000)  # all of it is there: what follows may be lost again
    t.machine.sent(3000)
    assert [t.guest(ACK, 0, 5000) for _ in range(3)] == [set(), set(), {"rewind", "pump"}]


def test_duplicate_acknowledgements_count_after_gigabytes_without_a_loss() -> None:
    t = established()
    for number in range(6):
        t.machine.sent(1 << 29)
        t.guest(ACK, 0, number + 1 << 29)
    t.machine.sent(5000)
    assert [t.guest(ACK, 0, 6 << 29) for _ in range(3)] == [set(), set(), {"rewind", "pump"}]


def test_data_or_a_window_update_is_no_duplicate_acknowledgement() -> None:
    t = established()
    t.machine.sent(5000)
    for i in range(5):
        assert "rewind" not in t.guest(ACK, i, 0, length=1)
    for i in range(5):
        assert "rewind" not in t.guest(ACK, 5, 0, window=600 + i)


def test_after_going_back_a_late_acknowledgement_moves_on() -> None:
    t = established()
    t.machine.sent(5000)
    t.machine.timeout(t.field("deadline"))
    assert t.guest(ACK, 0, 3000) == {"discard", "pump"}
    assert t.snd("snd_nxt") == 3000


# Zero window of the guest


def test_T12_a_zero_window_is_probed_for_as_long_as_the_guest_answers() -> None:
    t = established()
    t.guest(ACK, 0, 0, window=0)
    assert t.machine.room() == 0
    t.machine.blocked(t.now)
    for _ in range(40):
        t.now = t.field("deadline")
        assert t.machine.timeout(t.now) == {"probe"}
        assert t.guest(ACK, 0, 0, window=0) == set()
    assert t.field("deadline") - t.now <= 60 * SECOND
    assert t.guest(ACK, 0, 0, window=512) == {"pump"}
    assert t.machine.room() == 512 << 7


def test_T12_a_host_that_goes_on_sending_does_not_put_the_probes_off() -> None:
    t = established()
    t.guest(ACK, 0, 0, window=0)
    t.machine.blocked(t.now)
    probes = 0
    for _ in range(600):
        t.now += 100 * MS
        t.machine.blocked(t.now)  # a byte more
        while t.field("deadline") <= t.now:
            assert t.machine.timeout(t.now) == {"probe"}
            probes += 1
    assert probes >= 8


def test_T8_a_new_connection_waits_until_what_was_acknowledged_is_handed_over() -> None:
    t = established()
    t.guest(ACK | FIN, 0, 0, length=100)
    t.machine.held(100)
    assert t.guest(SYN, 5000) == set()
    t.machine.held(0)
    assert t.guest(SYN, 5000) == {"new"}


def test_a_guest_that_does_not_answer_probes_is_given_up_in_the_end() -> None:
    t = established()
    t.guest(ACK, 0, 0, window=0)
    t.machine.blocked(0)
    for _ in range(100):
        actions = t.machine.timeout(t.field("deadline"))
        if actions != {"probe"}:
            break
    assert actions == {"abort", "rst"}


def test_T13_a_window_closed_over_data_in_flight_is_probed_not_flooded() -> None:
    t = established()
    t.machine.sent(5000)
    t.guest(ACK, 0, 1000, window=0)
    assert t.machine.timeout(t.field("deadline")) == {"probe"}


def test_T10_what_acknowledges_lies_within_a_window_that_was_withdrawn() -> None:
    t = established()
    t.machine.sent(5000)
    assert t.machine.ack_seq() == t.field("snd_max")
    t.guest(ACK, 0, 1000, window=0)  # it has dropped the rest
    assert t.machine.ack_seq() == t.field("snd_una")
    t.guest(ACK, 0, 1000, window=8)
    assert t.machine.ack_seq() == t.field("snd_una") + 1024
    t.guest(ACK, 0, 1000, window=512)
    assert t.machine.ack_seq() == t.field("snd_max")


def test_what_was_in_flight_when_the_window_closed_is_sent_again_soon_after_it_opens() -> None:
    t = established()
    t.machine.sent(5000)
    t.guest(ACK, 0, 1000, window=0)
    for _ in range(40):  # more than the retransmissions that there are
        t.now = t.field("deadline")
        assert t.machine.timeout(t.now) == {"probe"}
        t.guest(ACK, 0, 1000, window=0)
    assert t.guest(ACK, 0, 1000, window=512) == {"pump"}
    assert t.field("deadline") == t.now + 200 * MS
    assert t.machine.timeout(t.field("deadline")) == {"rewind", "pump"}


# Closing


def test_T08_the_guest_shuts_its_side_and_goes_on_receiving() -> None:
    t = established()
    assert t.guest(ACK | FIN, 0, 0, length=10) == {"accept", "ack_batch"}
    assert t.machine.held(0) == {"shutdown"}
    t.machine.sent(50_000)
    assert t.guest(ACK, 11, 50_000) == {"discard", "pump"}
    assert t.machine.eof() == {"fin"}
    t.guest(ACK, 11, 50_001)
    assert t.machine.held(0) == {"close"}


def test_the_host_shuts_its_side_and_goes_on_receiving() -> None:
    t = established()
    t.machine.sent(100)
    assert t.machine.eof() == {"fin"}
    t.guest(ACK, 0, 101)
    assert t.machine.held(0) == set()
    assert t.guest(ACK, 0, 101, length=5000) == {"accept", "ack_batch"}
    t.guest(ACK | FIN, 5000, 101)
    assert t.machine.held(0) == {"close"}


def test_T09_a_fin_beyond_a_gap_is_ignored_until_the_gap_is_filled() -> None:
    t = established()
    assert t.guest(ACK | FIN, 1000, 0, length=500) == {"ack", "keep"}
    t.keep(1000, 500)
    assert t.machine.held(0) == set()
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch", "fetch"}
    assert t.machine.fetch() == 500
    assert t.rcv_nxt() == 1501
    assert t.machine.held(0) == {"shutdown"}


def test_T09_a_fin_beyond_a_gap_whose_data_found_no_room_waits_for_it() -> None:
    t = established()
    assert t.guest(ACK | FIN, 1000, 0, length=500) == {"ack", "keep"}
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch"}
    assert t.machine.held(0) == set()
    assert t.guest(ACK | FIN, 1000, 0, length=500) == {"accept", "ack_batch"}
    assert t.machine.held(0) == {"shutdown"}


def test_a_lone_fin_beyond_a_gap_is_taken_when_the_gap_is_filled() -> None:
    t = established()
    assert t.guest(ACK | FIN, 1000, 0) == {"ack"}
    assert t.guest(ACK, 0, 0, length=1000) == {"accept", "ack_batch", "fetch"}
    assert t.machine.fetch() == 0
    assert t.rcv_nxt() == 1001
    assert t.machine.held(0) == {"shutdown"}


def test_the_host_is_shut_only_when_everything_held_is_gone() -> None:
    t = established()
    t.guest(ACK | FIN, 0, 0, length=1000)
    assert t.machine.held(400) == set()
    assert t.machine.held(0) == {"shutdown"}
    assert t.machine.held(0) == set()


def test_T11_a_lost_fin_is_sent_again_with_backoff() -> None:
    t = established()
    assert t.machine.eof(0) == {"fin"}
    for expected in (200, 600, 1400):
        assert t.field("deadline") == expected * MS
        assert t.machine.timeout(expected * MS) == {"fin"}
    t.guest(ACK | FIN, 0, 1)
    assert t.machine.held(0) == {"close"}


def test_T10_a_fin_does_not_overtake_data_that_was_lost() -> None:
    t = established()
    t.machine.sent(5000)
    t.machine.eof()
    assert t.machine.timeout(t.field("deadline")) == {"rewind", "pump"}
    assert t.snd("snd_nxt") == 0
    t.machine.sent(5000)
    assert t.machine.eof() == {"fin"}
    assert t.snd("snd_max") == 5001
    t.guest(ACK, 0, 5001)
    assert t.machine.discarded() == 5000


def test_a_repeated_fin_is_acknowledged_again() -> None:
    t = established()
    t.guest(ACK | FIN, 0, 0)
    t.machine.held(0)
    assert t.guest(ACK | FIN, 0, 0) == {"ack"}


def test_T32_data_after_the_fin_is_ignored() -> None:
    t = established()
    t.guest(ACK | FIN, 0, 0)
    assert t.guest(ACK, 1, 0, length=100) == {"ack"}
    assert t.rcv_nxt() == 1


# Reset


def test_T05_a_reset_in_sequence_aborts() -> None:
    assert established().guest(RST, 0) == {"abort"}


def test_a_reset_elsewhere_in_the_window_is_challenged() -> None:
    t = established()
    assert t.guest(RST, 100) == {"ack"}
    assert t.guest(RST, -100) == set()
    assert t.guest(RST, 100_000_000) == set()


def test_a_syn_in_an_established_connection_is_challenged() -> None:
    assert established().guest(SYN, 5000) == {"ack"}


def test_T25_a_syn_after_the_guests_fin_opens_a_new_connection() -> None:
    t = established()
    t.guest(ACK | FIN, 0, 0)
    t.machine.held(0)
    assert t.guest(SYN, 5000) == {"new"}


# Keep-alive


@pytest.mark.parametrize("length", [0, 1])
def test_T16_T17_a_keep_alive_is_answered_and_switches_ours_on(length: int) -> None:
    t = established()
    t.guest(ACK, 0, 0, length=100)
    assert t.guest(ACK, 99, 0, length=length) == {"ack", "keepalive"}
    assert t.guest(ACK, 99, 0, length=length) == {"ack"}
    assert t.rcv_nxt() == 100


def test_T16_a_window_update_on_a_keep_alive_is_honoured() -> None:
    t = established()
    t.guest(ACK, 0, 0, length=100, window=0)
    t.machine.blocked()
    t.guest(ACK, 100, 0, window=0)
    assert "pump" not in t.guest(ACK, 99, 0, window=0)
    assert "pump" in t.guest(ACK, 99, 0, window=512)


def test_T18_a_silent_guest_is_probed_and_then_given_up() -> None:
    t = established()
    t.now = t.field("deadline")
    assert t.now == 300 * SECOND
    for _ in range(9):
        assert t.machine.timeout(t.field("deadline")) == {"probe"}
    assert t.machine.timeout(t.field("deadline")) == {"abort", "rst"}


def test_T18_one_whose_window_was_full_once_is_probed_too_before_it_is_given_up() -> None:
    t = established()
    t.machine.sent(40_000)
    t.machine.blocked(t.now)  # more may have come, and there is no room
    t.guest(ACK, 0, 40_000)
    assert t.field("deadline") == 300 * SECOND
    for _ in range(9):
        assert t.machine.timeout(t.field("deadline") + MS) == {"probe"}
    assert t.machine.timeout(t.field("deadline") + MS) == {"abort", "rst"}


def test_T18_what_the_host_has_shut_is_not_blocked_by_the_guests_window() -> None:
    t = established()
    t.machine.eof()
    t.guest(ACK, 0, 1)
    t.machine.blocked(t.now)
    assert t.machine.timeout(t.field("deadline") + MS) == {"probe"}
    t.guest(ACK, 0, 1, window=0)
    t.machine.blocked(t.now)
    assert t.field("deadline") > 10 * SECOND  # and no window is probed for it


def test_T18_after_a_long_silence_a_closed_window_is_probed_before_the_guest_is_given_up() -> None:
    t = established()
    t.guest(ACK, 0, 0, window=0)
    t.now = 299 * SECOND + 900 * MS
    t.machine.blocked(t.now)
    for _ in range(9):
        assert t.machine.timeout(t.field("deadline")) == {"probe"}
    assert t.machine.timeout(t.field("deadline")) == {"abort", "rst"}


def test_an_idle_guest_that_answers_is_kept() -> None:
    t = established()
    for _ in range(50):
        t.now = t.field("deadline")
        actions = t.machine.timeout(t.now)
        if actions:
            assert actions == {"probe"}
            assert t.guest(ACK, 0, 0) == set()
    assert t.field("state") == 4


def test_a_segment_without_acknowledgement_is_dropped() -> None:
    assert established().guest(PSH, 0, length=10) == set()
