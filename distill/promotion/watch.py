"""The running guard: read the journal, gather evidence, and publish the policy's next step when it suffices.

Its state is one file, replaced atomically: the position in the journal and the evidence. A guard killed at any moment
continues from there: evidence and position are saved in one write, so nothing counts twice; a step that was decided but
not published is decided again from the same evidence, and one that was published is found in the policy's history.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import structlog
from filelock import FileLock, Timeout

from distill.errors import AnotherNight, DataError, NightError
from distill.promotion import policies
from distill.promotion.guard import Evidence, GuardVerdict, Phase, decide, phase_of
from distill.promotion.reward_identity import RewardIdentity, same_identity
from distill.settings import PromotionSettings
from gateway.errors import GatewayError, JournalError
from gateway.files import write_atomically
from gateway.journal.record import CompletionRecord, decode
from gateway.journal.stream import START, StreamTail, entry_id_at, entry_order
from gateway.policy import Policy, PolicyStore

_CLOCKS_DIFFER = timedelta(minutes=5)  # the publisher's clock may be ahead of Redis's: reading starts so much earlier
_RETRY_S = 5.0
_PAUSE_S = 1.0

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Look:
    """One look at the evidence: the comparison (None outside a trial), the verdict, and the policy afterwards."""

    phase: Phase | None
    verdict: GuardVerdict | None
    policy: Policy
    excluded: Mapping[str, int]
    """The numbers of excluded records, by reason."""

    @property
    def rolled_back(self) -> bool:
        return self.verdict is not None and self.verdict.decision == "roll back"


@dataclass(slots=True)
class _State:
    after: str = START
    phase: dict[str, Any] | None = None
    evidence: Evidence = field(default_factory=Evidence)
    reward_identity: Any = None
    """The reward model's identity when the phase began (``reward_identity``); None until it is known."""


class Watch:
    """Guards the running trial; only one process may use a state file.

    Args:
        store: The policy; started and closed by the caller.
        tail: The journal.
        settings: Margins, shares and the file.
        reward: Observes the reward model's identity; closed by the caller. None: only its name is compared.
    """

    def __init__(
        self, store: PolicyStore, tail: StreamTail, settings: PromotionSettings, reward: RewardIdentity | None = None
    ) -> None:
        self._store = store
        self._tail = tail
        self._settings = settings
        self._reward = reward
        self._file = settings.guard_file

    async def once(self) -> Look:
        """Read the journal up to its end and act on the evidence.

        Raises:
            GatewayError: Redis does not answer.
            DistillError: The state file is damaged or in use, or a step cannot be published.
        """
        with self._alone():
            while True:
                look, more = await self._step()
                if not more or look.rolled_back:
                    return look

    async def forever(self, stop: asyncio.Event) -> None:
        """Repeat until ``stop`` is set; failures of Redis are logged and retried.

        Raises:
            DistillError: The state file is damaged or in use, or a step cannot be published.
        """
        with self._alone():
            while not stop.is_set():
                try:
                    _, more = await self._step()
                    pause_s = 0.0 if more else _PAUSE_S
                except GatewayError as error:
                    log.warning("guard_waits", error=error.message)
                    pause_s = _RETRY_S
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), pause_s)

    async def _step(self) -> tuple[Look, bool]:
        """Read one batch and act; the second value is True if there may be more to read."""
        known = await policies.known_policies(self._store)
        phase = phase_of(known)
        if phase is None:
            return Look(None, None, known[0], {}), False
        state = self._state(phase, known)
        entries = await self._tail.read(state.after)
        for entry in entries:
            state.after = entry.entry_id
            record = _completion(entry.data)
            if record is not None:
                state.evidence.add(record, phase)
        changed = await self._observe_reward_model(state)
        if entries or changed:
            self._save(state)
        verdict = decide(state.evidence, phase, self._settings)
        policy = await self._act(phase, verdict, known[0])
        acted = policy.version != known[0].version
        return Look(phase, verdict, policy, state.evidence.excluded), bool(entries) or acted

    async def _observe_reward_model(self, state: _State) -> bool:
        """Note the reward model's identity, or its change; return True if the state must be saved."""
        now = None if self._reward is None else await self._reward.observe()
        if now is None:
            return False
        if state.reward_identity is None:
            state.reward_identity = now
            return True
        if same_identity(state.reward_identity, now):
            return False
        state.evidence.reward_change = "the reward model behind the same name gives other rewards now"
        return True

    async def _act(self, phase: Phase, verdict: GuardVerdict, current: Policy) -> Policy:
        store, words = self._store, verdict.describe()
        match verdict.decision:
            case "wait":
                return current
            case "roll back":
                policy = await policies.roll_back(store, trial=phase.trial, reason=f"guard: rolled back: {words}")
            case "promote":
                share = self._settings.holdback_share
                policy = await policies.promote_canary(
                    store, trial=phase.trial, holdback_share=share, reason=f"guard: promoted: {words}"
                )
            case "end the watch":
                policy = await policies.end_watch(store, trial=phase.trial, reason=f"guard: watched: {words}")
        log.warning(
            "guard_acted",
            decision=verdict.decision,
            trial=phase.trial,
            pairs=verdict.pairs,
            mean_difference=round(verdict.mean_difference, 4),
            version=policy.version,
            n=policy.n,
        )
        return policy

    def _state(self, phase: Phase, known: list[Policy]) -> _State:
        """Return the saved state of this phase; for a new phase, an empty one that starts at its first version."""
        state = self._load()
        named = _as_json(phase)
        if state.phase == named:
            return state
        began = next(policy.created for policy in known if policy.version == phase.version)
        return _State(after=max(state.after, entry_id_at(began - _CLOCKS_DIFFER), key=entry_order), phase=named)

    def _load(self) -> _State:
        try:
            document = orjson.loads(self._file.read_bytes())
            evidence = Evidence.from_json(document["evidence"])
            return _State(document["after"], document["phase"], evidence, document.get("reward_identity"))
        except FileNotFoundError:
            return _State()
        except (ValueError, TypeError, KeyError) as error:
            raise DataError(f"{self._file} is damaged: move it away, and the trial's evidence is read again") from error
        except OSError as error:
            raise NightError(f"{self._file} cannot be read: {error.strerror}") from error

    def _save(self, state: _State) -> None:
        document = {
            "after": state.after,
            "phase": state.phase,
            "evidence": state.evidence.to_json(),
            "reward_identity": state.reward_identity,
        }
        try:
            write_atomically(self._file, orjson.dumps(document))
        except OSError as error:
            raise NightError(f"{self._file} cannot be written: {error.strerror}") from error

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Lock the state file: two guards with one file would each read half of the journal."""
        path: Path = self._file.with_name(f"{self._file.name}.lock")
        lock = FileLock(path, timeout=0)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except Timeout as error:
            raise AnotherNight(f"another guard is at work: it holds {path}") from error
        except OSError as error:
            raise NightError(f"{path} cannot be locked: {error.strerror}") from error
        try:
            yield
        finally:
            lock.release()


def _completion(data: bytes) -> CompletionRecord | None:
    """Return the record if it is a readable completion; unreadable records are the collector's to report."""
    try:
        record = decode(data)
    except JournalError:
        return None
    return record if isinstance(record, CompletionRecord) else None


def _as_json(phase: Phase) -> dict[str, Any]:
    """Return the phase in the form in which it is read from the file."""
    document: dict[str, Any] = orjson.loads(orjson.dumps(asdict(phase)))
    return document
