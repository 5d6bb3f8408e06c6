"""Every error the gateway raises on purpose, as one tree.

    GatewayError
    ├── CallerError                 the request is at fault
    │   ├── InvalidRequest          a field is missing, malformed or out of range
    │   ├── UnsupportedField        a valid field that this backend cannot serve
    │   ├── AuthenticationFailed    no API key, or an unknown one
    │   ├── PermissionDenied        a known API key without the scope for this
    │   ├── ModelNotFound           the model asked for is not served here
    │   ├── RequestTooLarge         the body is over the limit
    │   ├── RequestTooSlow          the body did not arrive in time
    │   ├── UnsupportedContentType  the body is not declared to be JSON
    │   └── UnsupportedContentEncoding  the body is compressed in a way that is not supported
    ├── Overloaded                  no permit for even one candidate; has the time to wait
    ├── RateLimited                 the API key has used up one of its limits; has the time to wait
    ├── NotReady                    starting, stopping, or a part is missing
    ├── DeadlineExceeded            no candidate finished in time
    ├── BackendError                the backend is at fault
    │   ├── BackendRejected         it refused the request as invalid: passed on to the caller
    │   │   ├── ContextLengthExceeded   messages, or messages plus max_tokens, are longer than its model takes
    │   │   └── BackendMisconfigured    it was started without something that the request needs: the operator's mistake
    │   ├── BackendOverloaded       it has no capacity now
    │   ├── BackendTimeout          it did not answer in time
    │   ├── BackendFailed           it answered with an error
    │   │   ├── BackendKeyRefused   it does not take the gateway's API key
    │   │   └── AdapterMissing      it does not serve the adapter asked for
    │   ├── BackendProtocolError    its answer makes no sense
    │   ├── BackendUnreachable      no connection, or the connection broke
    │   └── RequestContained        this request broke two servers and goes to no other for a while
    ├── RewardError                 no reward: the race falls back, and callers never see the error
    │   ├── RewardTimeout           the reward model was too slow
    │   ├── RewardRefused           this answer cannot be scored; others can
    │   └── RewardUnavailable       the reward model failed several times in a row and is not asked for a while
    ├── JournalError                a record could not be made durable
    ├── PolicyError                 a policy document is malformed
    └── SettingsError               fatal at start: a setting is unknown or bad

Messages are in the caller's terms and never hold prompt or answer text. ``gateway.api.errors`` maps each class to
an HTTP status; a test fails if a class is missing there.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import TypeVar

Error = TypeVar("Error", bound=BaseException)


class GatewayError(Exception):
    """Root of the tree."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class CallerError(GatewayError):
    """The request is at fault. ``param`` names the field in the caller's terms, where there is one."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class InvalidRequest(CallerError):
    """A field is missing, malformed or out of range."""


class UnsupportedField(CallerError):
    """A valid OpenAI field that this backend cannot serve."""


class AuthenticationFailed(CallerError):
    """No API key, or an unknown one."""


class PermissionDenied(CallerError):
    """A known API key without the scope for this."""


class ModelNotFound(CallerError):
    """The model asked for is not served here."""


class RequestTooLarge(CallerError):
    """The body is over the configured limit."""


class RequestTooSlow(CallerError):
    """The body did not arrive in time."""


class UnsupportedContentType(CallerError):
    """The body is not declared to be JSON."""


class UnsupportedContentEncoding(CallerError):
    """The body is compressed in a way that is not supported."""


class Overloaded(GatewayError):
    """No permit for even one candidate."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RateLimited(GatewayError):
    """The API key has used up one of its limits. ``headers`` are those of what is left of each limit."""

    def __init__(
        self, message: str, *, retry_after_s: float = 1.0, headers: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s
        self.headers = headers


class NotReady(GatewayError):
    """Starting, stopping, or a part is missing."""


class DeadlineExceeded(GatewayError):
    """No candidate finished in time."""


class BackendError(GatewayError):
    """The backend is at fault."""


class BackendRejected(BackendError):
    """The backend refused the request as invalid (a bad grammar, …). ``param``: the field, if the backend named it."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.param = param


class ContextLengthExceeded(BackendRejected):
    """The messages, or the messages and ``max_tokens`` together, are longer than the backend's model takes."""


class BackendMisconfigured(BackendRejected):
    """The backend was started without something that this request needs (vLLM's tool parser).

    Only its operator can mend that. It serves other requests, so the replica is not ejected.
    """


class BackendOverloaded(BackendError):
    """The backend has no capacity now."""


class BackendTimeout(BackendError):
    """The backend did not answer in time."""


class BackendFailed(BackendError):
    """The backend answered with an error of its own."""


class BackendKeyRefused(BackendFailed):
    """The backend does not take the gateway's API key."""


class AdapterMissing(BackendFailed):
    """A replica does not serve the adapter asked for; it may serve everything else."""


class BackendProtocolError(BackendError):
    """The backend's answer makes no sense: not JSON, not a completion, cut short."""


class BackendUnreachable(BackendError):
    """No connection to the backend, or the connection broke.

    ``was_sent``: the request may have reached the backend, which may have drawn tokens for it. ``broke``: the
    connection broke in the middle of the call without notice, so the request itself may be the cause.
    """

    def __init__(self, message: str, *, was_sent: bool = True, broke: bool = False) -> None:
        super().__init__(message)
        self.was_sent = was_sent
        self.broke = broke


class RequestContained(BackendError):
    """This request broke the connections of two servers, so it goes to no other server for a while."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class RewardError(GatewayError):
    """The answer has no reward."""


class RewardTimeout(RewardError):
    """The reward model was too slow."""


class RewardRefused(RewardError):
    """This answer cannot be scored, because the model's template or server refuses it; other answers can."""


class RewardUnavailable(RewardError):
    """The reward model failed several times in a row and is not asked until a probe succeeds."""


class JournalError(GatewayError):
    """A record could not be made durable."""


class PolicyError(GatewayError):
    """A policy document is malformed."""


class SettingsError(GatewayError):
    """A setting is unknown or bad."""


def strip_traceback(error: Error) -> Error:
    """Remove traceback, cause and context from an error, and return it.

    Call this before storing an error or raising another one from it. A traceback keeps every frame's locals alive (a
    32 MB body, for example). If a frame refers to the error, they form a cycle that only a full collection frees, and
    full collections are rare.
    """
    chain: list[BaseException] = [error]
    while chain:
        link = chain.pop()
        chain += [other for other in (link.__cause__, link.__context__) if other is not None]
        link.__cause__ = link.__context__ = link.__traceback__ = None
    return error
