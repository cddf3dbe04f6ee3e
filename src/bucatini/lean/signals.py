"""`signal` for what a start imports: the half of it that is in C, in which signals are plain numbers."""

from __future__ import annotations

from bucatini.lean.record import TYPE_CHECKING

if TYPE_CHECKING:
    from signal import *  # noqa: F403
else:
    from _signal import *  # noqa: F403
