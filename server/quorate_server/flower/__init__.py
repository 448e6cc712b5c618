"""Flower at the server: our Grid for guest apps, our ServerApp for stock deployments.

``app`` is found here by Flower; whoever imports another module of this folder does not load Flower with it.
"""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")  # flwr phones home by default
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")

__all__ = ["app"]  # Flower looks for the name in the source before it imports


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    from quorate_server.flower.server_app import app

    return app
