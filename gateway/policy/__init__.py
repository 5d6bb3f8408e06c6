"""The policy: the adapter, N and default temperature that answer requests, as a versioned document in Redis.

``document`` is the document, ``published`` its place in Redis, ``store`` what a gateway reads: the current policy in
memory, refreshed from Redis and saved on disk.
"""

from gateway.policy.document import Base, Canary, Policy
from gateway.policy.store import PolicyStore

__all__ = ["Base", "Canary", "Policy", "PolicyStore"]
