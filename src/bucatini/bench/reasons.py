"""Why we are behind the best peer, where that was looked into: the cell's id -> what was measured.

An id with "p99" behind it is about the 99th percentile of that cell, one without about what counts in it.
The page puts them beside the cells in which the result that it shows has us behind; for the others they say nothing.
A reason names what was measured and how, so that it can be measured again; a guess is none.
"""

from __future__ import annotations

LOADED = (
    "it waits for what the stream beside it has in the link's queue, a window of 256 KiB (72 µs at 29 Gbit/s), and "
    "for its turns of three superframes; and our stream moves many times as much. docs/profiles.md has perf's view of "
    "both"
)
PACED = (
    "not profiled, and of one machine: on another (Xeon, 2026-11-27) the values of upstream's and ours overlapped: 49 "
    "and 47 µs outwards, 44 and 47 inwards. Outwards upstream's stream beside it reaches a seventh of its gigabit here"
)
LOCAL = (
    "both move pages with splice(2), and the values of the two overlap; of the four cells some have us ahead and some "
    "behind, others in another run"
)
REASONS = {
    "start@start": (
        "an interpreter has to start, and to load what a C program has linked: two thirds of it (docs/profiles.md); "
        "isolation is complete before readiness is told. slirp4netns's figure is the byte on its ready descriptor"
    ),
    "tcp-pingpong@mtu65520": (
        "slirp4netns runs without its sandbox, and isolation costs us a hundredth here (docs/isolation.md). The values "
        "of the two overlap (docs/profiles.md)"
    ),
    "paced-out@mtu65520": PACED,
    "paced-out@mtu65520 p99": PACED,
    "paced-in@mtu65520": PACED,
    "paced-in@mtu65520 p99": PACED,
    "tcp-out@bypass": LOCAL,
    "tcp-in@bypass": LOCAL,
    "tcp-back-out@bypass": LOCAL,
    "tcp-back-in@bypass": LOCAL,
    "vm-tcp-in@vm65520": (
        "the emulated machine (tcg) is the bottleneck: a gigabyte costs our passt 0.98 s of its processor and "
        "upstream's 1.08, while the machine takes 19 s for it"
    ),
    "loaded-out@mtu65520": LOADED,
    "loaded-in@mtu65520": LOADED,
    "loaded-out@mtu65520 p99": LOADED,
    "loaded-in@mtu65520 p99": (
        "the two ends wait for the processor that they share with those of the stream, which keeps it the busier the "
        "more it moves: of 3,137 times that they could go on, they had to wait for more than 1 ms 32 times, the "
        "translator one of 1,414; beside upstream's stream, of 26 Gbit/s, 3 of 4,515 (perf sched, docs/profiles.md)"
    ),
    "vm-tcp-pingpong@vm65520 p99": (
        "the machine is emulated (tcg), and the values of the two overlap (610 to 1,747 and 985 to 1,876 µs)"
    ),
    "loaded-out@rtt20 p99": (
        "the queue of the bottleneck is most of it (34.6 ms with no translation), and the values of all overlap: 34.3 "
        "to 40.2 ms with us, 34.8 to 43.1 and 32.3 to 48.3 with the peers"
    ),
    "loaded-out@rtt20": (
        "the peer's stream leaves most of the path unused, so nothing waits in its queue; with all others, and with no "
        "translation at all, the queue of the bottleneck is what is measured"
    ),
    "tcp-in@loss": (
        "the loss of the network decides, and the kernel of the host recovers from it: no translation at all has the "
        "same figure"
    ),
    "held-1k@held": (
        "pages of tables that are reserved at the start come into use: 408 bytes for each flow, and 512 KiB of the "
        "index, most of which 1,000 flows touch because the hash spreads them (flow.pyx): up to 932 bytes each. The "
        "10,000 of the next cell find the index in use, and 1,000 flows to be used again: 340 bytes each"
    ),
}
