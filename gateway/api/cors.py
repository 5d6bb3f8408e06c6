"""Cross-origin requests (CORS): options of starlette's middleware for the web pages that may call the API."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

EXPOSED = (
    "x-request-id",
    "retry-after",
    "retry-after-ms",
    "x-bon-n",
    "x-bon-n-asked",
    "x-bon-scored",
    "x-bon-selection",
    "x-bon-generated-tokens",
    "x-bon-policy",
    "x-bon-arm",
    "x-bon-reward",
    "x-bon-reward-model",
    "x-bon-shortfall",
    "x-bon-total-ms",
    "x-bon-overhead-ms",
    "x-ratelimit-limit-requests",
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-requests",
    "x-ratelimit-reset-tokens",
)
"""Response headers that a page's script may read: a browser hides all others from it."""

_MAX_AGE_S = 600
"""Time for which a browser may keep the answer to a preflight request."""


def options(origins: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of ``CORSMiddleware``.

    Any header may be sent: OpenAI's JavaScript client adds a dozen of its own, and the origins are trusted. Cookies
    are not allowed because the API uses none: the key comes in the authorization header.
    """
    return {
        "allow_origins": origins,
        "allow_methods": ("GET", "POST"),
        "allow_headers": ("*",),
        "allow_private_network": True,  # a page of a listed origin may call a gateway on its reader's own network
        "expose_headers": EXPOSED,
        "max_age": _MAX_AGE_S,
    }
