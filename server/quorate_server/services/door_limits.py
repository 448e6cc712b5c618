"""What the transport itself allows, before any certificate is seen: sizes, times and numbers.

Anybody may open a TCP connection. Python's gRPC shows none of them before its handshake is over, so nothing here can
tell one stranger from another: how many there may be from one address is for a firewall to say
(docs/guides/operations.md). What can be done is done: nobody stays who does not finish a handshake, and connections
never take the files that the rest of the daemon needs, for without those no site is let in at all.
"""

from __future__ import annotations

import resource

from quorate.rounds.blobs import FRAME_BYTES

MAX_MESSAGE_BYTES = 4 * 1024 * 1024 - FRAME_BYTES
HANDSHAKE_S = 10.0
"""From the first byte to the end of the handshake; the transport's own limit is two minutes."""
IDLE_S = 60.0
"""A connection without a call. A site's has one as long as it lasts."""
MAX_CALLS_OF_A_CONNECTION = 100
MAX_CONNECTIONS = 8192
"""20 KB each while nothing is said on them."""
WANTED_FILES = 16_384
OWN_FILES = 256
"""Database, spool, log and uploads."""
FILES_OF_A_RUN = 4

Options = tuple[tuple[str, int], ...]


def raise_file_limit() -> None:
    """Let this process have as many open files, connections among them, as the system lets it.

    The usual limit of 1,024 was used up by 1,500 silent connections, and with it database and spool.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED_FILES if hard == resource.RLIM_INFINITY else min(WANTED_FILES, hard)
    if file_limit() < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def file_limit() -> int:
    """How many open files this process may have."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return WANTED_FILES if soft == resource.RLIM_INFINITY else soft


def max_connections(files: int, runs: int) -> int:
    """How many connections there may be, so that the daemon can open its own files beside them.

    Args:
        files: What this process may have open.
        runs: At a time.
    """
    return max(1, min(MAX_CONNECTIONS, files - OWN_FILES - FILES_OF_A_RUN * runs))


def door_options(connections: int, handshake_s: float = HANDSHAKE_S, idle_s: float = IDLE_S) -> Options:
    """For the gRPC server."""
    return (
        ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
        ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
        # Measured for many large uploads at once: without the bandwidth probe and with this much lookahead the memory
        # of eight uploads is bounded, and a line of 40 ms still fills.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", 1 * 1024 * 1024),
        ("grpc.so_reuseport", 0),
        ("grpc.http2.max_frame_size", 1024 * 1024),
        ("grpc.keepalive_time_ms", 30_000),
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.server_handshake_timeout_ms", round(handshake_s * 1000)),
        ("grpc.max_connection_idle_ms", round(idle_s * 1000)),
        ("grpc.max_concurrent_streams", MAX_CALLS_OF_A_CONNECTION),
        ("grpc.max_allowed_incoming_connections", connections),
    )
