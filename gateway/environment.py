"""Read a class of settings from environment variables, and print its table and its example file.

A variable is the prefix and the field, with ``__`` between group and field: ``GATEWAY_BACKEND__URLS``.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Mapping
from typing import TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_settings import BaseSettings

from gateway.errors import SettingsError

AnySettings = TypeVar("AnySettings", bound=BaseSettings)

Rows = Mapping[str, tuple[str, str]]
"""Default and meaning of each variable."""

_log = logging.getLogger(__name__)  # not structlog, which writes to stdout until it is configured: after the settings


def read(
    settings: type[AnySettings], prefix: str, lister: str, *, without_effect: Collection[str] = frozenset()
) -> AnySettings:
    """Read the settings from the environment.

    Variables of earlier releases, those ``without_effect``, are logged and taken out of the environment, so that the
    processes that this one starts do not log them again.

    Raises:
        SettingsError: Names every unknown variable and every bad value.
    """
    known = {name.upper() for name in variables(settings, prefix)}
    found = sorted(name for name in os.environ if name.upper().startswith(prefix) and name.upper() not in known)
    if ignored := [name for name in found if name.upper() in without_effect]:
        _log.warning("settings_ignored: %s (no longer settings; remove them)", ", ".join(ignored))
        for name in ignored:
            del os.environ[name]
    if unknown := [name for name in found if name not in ignored]:
        raise SettingsError(f"unknown settings: {', '.join(unknown)} ({lister} lists them)")
    try:
        return settings()
    except ValidationError as error:
        problems = [f"{_variable(item['loc'], prefix)}: {item['msg']}" for item in error.errors(include_url=False)]
        # From None: pydantic's own message quotes the values, passwords included.
        raise SettingsError("bad settings: " + "; ".join(problems)) from None


def variables(settings: type[BaseSettings], prefix: str) -> dict[str, tuple[str, str]]:
    """Return the default and the meaning of every environment variable, in the order of the classes."""
    rows: dict[str, tuple[str, str]] = {}
    for name, info in settings.model_fields.items():
        group = info.annotation
        if isinstance(group, type) and issubclass(group, BaseModel):
            for inner, inner_info in group.model_fields.items():
                rows[_variable((name, inner), prefix)] = (_shown(inner_info.default), inner_info.description or "")
        else:
            rows[_variable((name,), prefix)] = (_shown(info.default), info.description or "")
    return rows


def split_list(text: str) -> tuple[str, ...]:
    """Return the parts of a list that is separated by commas, without empty ones."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


def table(rows: Rows) -> str:
    """Return a Markdown table of variable, default and meaning."""
    lines = [
        f"| `{name}` | {f'`{default}`' if default else ''} | {_one_line(meaning)} |"
        for name, (default, meaning) in rows.items()
    ]
    return "\n".join(["| Variable | Default | Meaning |", "|---|---|---|", *lines]) + "\n"


def example(rows: Rows, header: str) -> str:
    """Return an environment file in which every variable is commented out and shows its default."""
    blocks = [f"# {_one_line(meaning)}\n#{name}={default}\n" for name, (default, meaning) in rows.items()]
    return "\n".join([header, *blocks])


def _variable(loc: tuple[int | str, ...], prefix: str) -> str:
    return prefix + "__".join(str(part).upper() for part in loc[:2])


def _shown(default: object) -> str:
    if default is None or default == "":
        return ""
    return ",".join(map(str, default)) if isinstance(default, tuple) else str(default)


def _one_line(text: str) -> str:
    return " ".join(text.split())
