"""Our own checks for schemathesis: test_schemathesis.py loads them into its process."""

from __future__ import annotations

import re
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, Response

# Rules between fields, and limits of the backend, which a JSON schema cannot express.
RULES = {
    ("invalid_value", "max_tokens"),  # contradicts max_completion_tokens
    ("invalid_value", "messages[].content[].text"),  # a text part without text
    ("invalid_value", "messages[].content[].refusal"),
    ("invalid_value", "n"),  # larger than best_of
    ("invalid_value", "response_format.json_schema.schema"),  # a number that not every JSON reader can hold
    ("invalid_value", "tool_choice"),  # without tools
    ("invalid_value", "tools[].function.parameters"),  # as above
    ("invalid_value", "top_logprobs"),  # without logprobs
    ("context_length_exceeded", "max_tokens"),
    ("context_length_exceeded", "messages"),
    ("rejected_by_backend", None),  # a tool that is not there, …
    ("unsupported_parameter", "logit_bias"),  # TGI's limits
    ("unsupported_parameter", "presence_penalty"),
    ("unsupported_parameter", "response_format"),
    ("unsupported_parameter", "top_logprobs"),
    ("unsupported_parameter", "messages[].content[].type"),  # image parts and the like
    ("unsupported_parameter", "messages[].audio"),
    ("unsupported_parameter", "messages[].function_call"),
    ("unsupported_parameter", "messages[-1]"),  # the assistant's
}


@schemathesis.check
def valid_data_is_refused_by_a_known_rule_only(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Check that a 400 to a request which the schema allows names a rule that no schema can express."""
    if response.status_code == 400 and case.meta is not None and case.meta.generation.mode.is_positive:
        error = response.json()["error"]
        param = error["param"] and re.sub(r"\[\d+\]", "[]", error["param"])
        assert (error["code"], param) in RULES, f"no rule refuses this: {error}"


@schemathesis.check
def every_error_is_openais_envelope(ctx: CheckContext, response: Response, case: Case[Any]) -> None:
    """Check that every error has OpenAI's envelope, except readiness, which is no error."""
    if response.status_code >= 400 and response.content and case.path != "/health/ready":
        assert set(response.json()["error"]) == {"message", "type", "param", "code"}
