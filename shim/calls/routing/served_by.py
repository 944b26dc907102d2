"""What answered a request, in words."""

from __future__ import annotations

from backends.base import Endpoint, shown_url


def served(name: str, endpoint: Endpoint) -> str:
    """The model, and the endpoint's address where it is remote."""
    return name if endpoint.is_ours else f"{name} at {shown_url(endpoint.base_url)}"
