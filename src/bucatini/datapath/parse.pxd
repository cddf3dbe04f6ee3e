"""Checking of received frames: every length once, here, before any header is looked at."""

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from bucatini.datapath.headers cimport addr_t, vnet_hdr
from bucatini.datapath.link cimport Frame

cdef enum Kind:  # what `parse_frame` found
    KIND_TCP
    KIND_UDP
    KIND_ECHO  # ICMP or ICMPv6 echo request
    KIND_SLOW  # for Python: ARP, neighbour discovery, DHCP, DHCPv6
    KIND_FRAGMENT  # of an IP packet: to be reassembled first
    KIND_IGNORED  # nothing to do and no fault: counted by its `drop`

cdef struct FrameRef:  # a parsed frame; all that later stages look at. Ports and numbers in host order
    uint8_t *frame  # Ethernet header
    uint32_t length  # of the frame, without padding behind the IP packet
    uint8_t *l3  # IP header
    uint32_t l3_length  # bytes from the IP header to the end of the packet
    uint8_t *l4
    uint32_t l4_length  # bytes from the L4 header to the end of the packet
    uint8_t *payload  # behind the L4 header
    uint32_t payload_length
    addr_t src
    addr_t dst
    uint16_t sport  # echo: the identifier
    uint16_t dport  # echo: the sequence number
    uint8_t version  # 4 or 6
    uint8_t protocol  # PROTO_*
    uint8_t kind  # Kind
    uint8_t tos
    uint8_t ttl
    # TCP
    uint8_t flags
    uint16_t window  # unscaled
    uint32_t seq
    uint32_t ack
    uint8_t *options
    uint32_t options_length
    # offload
    uint8_t gso_type  # VNET_GSO_*
    uint16_t gso_size
    # fragments: see `reassemble`
    uint32_t fragment_id
    uint32_t fragment_offset  # bytes
    uint8_t fragment_more
    uint8_t fragment_protocol  # of the first header behind the fragment header
    uint8_t *fragment_data
    uint32_t fragment_length

# Fills `ref` from `frame`; returns a Kind, or -(Counter) naming why the frame is dropped. Does not count.
cdef int parse_frame(const Frame *frame, FrameRef *ref) noexcept nogil
# Parses an IP packet that was put together again: `l3`, `length` bytes, version 4 or 6; checksums in software.
cdef int parse_packet(uint8_t *l3, uint32_t length, uint8_t version, FrameRef *ref) noexcept nogil
