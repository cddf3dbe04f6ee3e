"""Why we are behind the best peer, where that was looked into: the cell's id -> what was measured.

The page puts them beside the cells in which the result that it shows has us behind; for the others they say nothing.
A reason names what was measured and how, so that it can be measured again; a guess is none.
"""

LOADED = (
    "a round trip waits for the turns of the stream beside it, and ours is the fastest: the row below has what each "
    "reached meanwhile"
)
REASONS = {
    "start@start": (
        "an interpreter has to load what a C program has linked. Of the time from exec to readiness, 8 ms are the "
        "interpreter's own and about 20 ms imports (python -X importtime); ARCHITECTURE.md, Start-up time, says what "
        "is done about it. slirp4netns's figure is the byte on its ready descriptor"
    ),
    "loaded-out@mtu65520": LOADED,
    "loaded-in@mtu65520": LOADED,
    "loaded-out@rtt20": (
        "the peer's stream leaves most of the path unused, so nothing waits in its queue; with all others, and with no "
        "translation at all, the queue of the bottleneck is what is measured"
    ),
    "tcp-in@loss": (
        "the loss of the network decides, and the kernel of the host recovers from it: no translation at all has the "
        "same figure"
    ),
    "held-1k@held": (
        "the flow table is reserved at the start and its pages come into use as flows spread over them; a connection "
        "itself takes none later, as the cell with 10,000 of them shows"
    ),
}
