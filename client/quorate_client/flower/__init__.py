"""Flower at a site: guest apps in a task worker, our ClientApp for stock deployments.

``app`` is found here by Flower; whoever imports another room of this folder does not load Flower with it.
"""

from __future__ import annotations

from typing import Any

__all__ = ["app"]  # Flower looks for the name in the source before it imports


def __getattr__(name: str) -> Any:
    if name != "app":
        raise AttributeError(name)
    from quorate_client.flower.client_app import app

    return app
