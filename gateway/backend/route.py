"""One race's way through the fleet (``Route``), and one draw on it (``Draw``)."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from gateway.backend.containment import Containment
from gateway.backend.flavours import Refusal
from gateway.backend.replicas import Replica
from gateway.types import Prompt


@dataclass(slots=True, eq=False)
class Route:
    """Shared by the draws of a race: they go to one replica, for its prefix cache.

    Attributes:
        replica: Where draws begin; None until the first draw chooses.
        begun: A draw of the race was made.
        hedge: Where the race's hedged draws go.
        answered: A draw of the race was answered.
        fingerprint: The request's, computed when first needed.
        length_checked: The length of the race's prompt was looked at.
        length_check: Counts the prompt's tokens where it may be too long; its result is the refusal.
    """

    replica: Replica | None = None
    begun: bool = False
    hedge: Replica | None = None
    answered: bool = False
    fingerprint: str | None = None
    length_checked: bool = False
    length_check: asyncio.Task[Refusal | None] | None = None


@dataclass(slots=True, eq=False)
class Draw:
    """One draw; ``tried`` are the replicas that failed it."""

    route: Route
    prompt: Prompt
    seed: int
    tried: list[Replica] = field(default_factory=list)

    def fingerprint(self, containment: Containment) -> str:
        """Return the hash by which containment knows the request."""
        if self.route.fingerprint is None:
            self.route.fingerprint = containment.fingerprint(self.prompt)
        return self.route.fingerprint
