"""How long a daemon takes to answer ``/metrics``, for whoever waits for it."""

from __future__ import annotations

import http.client
import time

from quorate.process.monitoring import FRESH_S

COUNT = 5
TIMEOUT_S = 30.0


def slowest_scrape_s(address: str) -> float:
    """Of some scrapes with their connections, each far enough from the last that its page is made anew."""
    return max(_scrape_s(address) for _ in range(COUNT))


def _scrape_s(address: str) -> float:
    time.sleep(1.2 * FRESH_S)
    started = time.perf_counter()
    connection = http.client.HTTPConnection(address, timeout=TIMEOUT_S)
    try:
        connection.request("GET", "/metrics")
        page = connection.getresponse().read()
    finally:
        connection.close()
    if b"quorate_" not in page:
        raise RuntimeError(f"{address} gave no metrics")
    return time.perf_counter() - started
