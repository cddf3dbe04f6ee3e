"""Checksum, SipHash and the names of the counters."""

import pytest
from bucatini.datapath.checksum import sum16
from bucatini.datapath.counters import names
from bucatini.datapath.siphash import siphash24_of
from hypothesis import given
from hypothesis import strategies as st


def reference(data: bytes, initial: int) -> int:
    """RFC 1071 §4.1, word by word."""
    total = initial
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


@given(st.binary(max_size=3000), st.integers(0, 0xFFFF))
def test_the_sum_is_that_of_the_reference(data: bytes, initial: int) -> None:
    assert sum16(data, initial) % 0xFFFF == reference(data, initial) % 0xFFFF


@pytest.mark.parametrize("size", [0, 1, 31, 32, 33, 65535])
def test_ones_do_not_overflow(size: int) -> None:
    assert sum16(b"\xff" * size) % 0xFFFF == reference(b"\xff" * size, 0) % 0xFFFF


# Reference vectors of the authors: key 00..0f, message 00..(n-1), output as bytes
@pytest.mark.parametrize(
    ("length", "expected"), [(0, "310e0edd47db6f72"), (8, "6224939a79f5f593"), (16, "db9bc2577fcc2a3f")]
)
def test_siphash_is_the_published_function(length: int, expected: str) -> None:
    assert siphash24_of(bytes(range(16)), bytes(range(length))).to_bytes(8, "little").hex() == expected


def test_every_counter_has_one_name() -> None:
    assert len(set(names())) == len(names())
    assert all(name.islower() for name in names())
