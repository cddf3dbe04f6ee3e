"""Names of the counters, in the order of the enum: what `--stats` and the tests show."""

_NAMES = (
    "frames_in", "bytes_in", "frames_out", "bytes_out", "slow_in", "slow_out", "tcp_opened_guest", "tcp_opened_host",
    "tcp_closed", "tcp_reset_by_guest", "tcp_reset_by_host", "tcp_timed_out", "udp_flows", "ping_flows", "ping_evicted",
    "splice_opened", "splice_closed", "splice_reset", "splice_bytes", "udp_splice_flows", "flow_refused",
    "tcp_rst_sent", "tcp_retransmit", "tcp_fast_retransmit", "tcp_out_of_order", "tcp_duplicate", "tcp_overflow",
    "tcp_overflow_exhausted", "tcp_data_after_fin", "tcp_zero_window_probe", "tcp_keepalive_sent", "tcp_challenge_ack",
    "tcp_paws", "tcp_half_open_evicted", "udp_evicted", "udp_errors", "icmp_sent", "fragments_in", "reassembled",
    "link_down", "sockets_made", "sockets_stalled", "slow_errors", "drop_runt", "drop_oversize", "drop_ethertype",
    "drop_ip_header", "drop_ip_checksum", "drop_ip_address", "drop_ip_protocol", "drop_fragment",
    "drop_fragment_budget", "drop_extension", "drop_tcp_header", "drop_udp_header", "drop_icmp_header",
    "drop_l4_checksum", "drop_port_zero", "drop_disabled", "drop_tcp_unknown", "drop_icmp_type", "drop_multicast",
    "drop_slow", "drop_slow_budget", "drop_open_budget", "drop_udp_send", "drop_udp_no_socket", "drop_ping_send",
    "drop_ping_no_socket", "drop_link_full", "drop_link_error", "drop_udp_inbound", "drop_udp_splice",
)


cpdef tuple names():
    """Return the names, one per index of the enum."""
    assert len(_NAMES) == C_COUNT
    return _NAMES
