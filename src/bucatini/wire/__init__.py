"""Formats on the wire: bytes to values and back, one module per protocol.

The readable reference of what the packet path parses, and what the services speak. Each message is a `NamedTuple`
with `parse` and `emit`; for every message `parse` returns what `emit` wrote. Addresses are bytes in network order,
4, 6 or 16 of them; other numbers are ints in host order.

What it does not do: no clock, no descriptor, no log, no state from one message to the next.

Failure. `parse` checks every length before it looks behind it and raises `Truncated` or `Malformed`, nothing else.
`emit` of a value that the format cannot hold (a port of 70000) is a fault of the caller and raises what `struct`
raises.
"""
