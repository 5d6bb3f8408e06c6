"""TGI's errors, as its router words them."""

from __future__ import annotations

from typing import Any

STATUS_OF = {
    "overloaded": 429,
    "validation": 422,
    "template_error": 422,
    "tool_error": 422,
    "generation": 424,
    "incomplete_generation": 500,
    "healthcheck": 503,
}


class TgiError(Exception):
    """An error with a type of TGI's own; JSON on the wire, or a frame of a stream."""

    def __init__(self, error_type: str, message: str) -> None:
        super().__init__(message)
        self.error_type = error_type
        self.message = message

    @property
    def status(self) -> int:
        """The HTTP status, while one can still be sent."""
        return STATUS_OF[self.error_type]

    @property
    def body(self) -> dict[str, Any]:
        """The body of an error response, and the frame of /generate_stream."""
        return {"error": self.message, "error_type": self.error_type}

    @property
    def frame(self) -> dict[str, Any]:
        """The frame of a chat stream; its status is always 422."""
        return {"error": {"message": self.message, "http_status_code": 422}}


class BodyError(Exception):
    """The body could not be read as the request's type: text/plain, before TGI's own code runs."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


def overloaded() -> TgiError:
    return TgiError("overloaded", "Model is overloaded")


def invalid(message: str) -> TgiError:
    return TgiError("validation", f"Input validation error: {message}")


def of_status(status: int) -> TgiError | None:
    """Return TGI's body for ``status``, or None for a status that it never sends."""
    return {
        422: invalid("`inputs` cannot be empty"),
        424: TgiError("generation", "Request failed during generation: Server error: CANCELLED"),
        429: overloaded(),
        500: TgiError("incomplete_generation", "Incomplete generation"),
        503: TgiError("healthcheck", "unhealthy"),
    }.get(status)
