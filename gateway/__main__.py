"""``python -m gateway``: serve · reward · demo · policy · key · settings."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import typer
from rich.console import Console
from rich.table import Table

from gateway import environment, workers
from gateway.api.keyfile import new_key
from gateway.app import build
from gateway.errors import GatewayError
from gateway.policy import Policy, PolicyStore
from gateway.redis_client import check_redis
from gateway.settings import Settings, load, variables
from gateway.telemetry import configure_logging
from gateway.types import Arm

T = TypeVar("T")

_ENV_HEADER = """\
# Every setting with its default. Take the sign off a line to change it, then load the file before the start:
#   cp .env.example .env && set -a && . ./.env && set +a && python -m gateway serve
# Made by `python -m gateway settings --env`.
"""

cli = typer.Typer(no_args_is_help=True, add_completion=False, help="Best-of-N answers behind OpenAI's chat API.")
policy_cli = typer.Typer(no_args_is_help=True, help="Show or change which adapter answers, and with which N.")
key_cli = typer.Typer(no_args_is_help=True, help="API keys.")
cli.add_typer(policy_cli, name="policy")
cli.add_typer(key_cli, name="key")

out = Console()
err = Console(stderr=True)


@cli.command()
def serve(
    embedded: Annotated[
        bool, typer.Option("--embedded", help="Bring Redis, llama.cpp and a small reward model along.")
    ] = False,
) -> None:
    """Serve the chat API, with settings from the environment."""
    if embedded:
        from gateway.embedded.serve import main as serve_embedded

        raise typer.Exit(serve_embedded())
    settings = _settings()
    # What would fail in every worker fails here, once and in one line: building starts no thread and loads no model.
    _told(lambda: build(settings))
    _told(lambda: asyncio.run(check_redis(settings.redis)))
    workers.serve(settings)


@cli.command()
def reward() -> None:
    """Serve the configured reward model over /classify, for many gateway workers to share."""
    from gateway.reward.server import serve as serve_rewards

    settings = _settings()
    _told(lambda: serve_rewards(settings))


@cli.command()
def demo() -> None:
    """Run best-of-N on real weights, a real Redis and the official client, all on this machine."""
    from gateway.demo.demo import main

    raise typer.Exit(main())


@cli.command("restart-backend")
def restart_backend(
    data_dir: Annotated[Path, typer.Option(help="Folder of the embedded stack.")] = Path("data/embedded"),
    timeout_s: Annotated[float, typer.Option(min=1, help="Longest time to wait for it.")] = 600.0,
) -> None:
    """Have the running embedded stack serve the adapters in its folder: one replica after the other starts anew."""
    from gateway.embedded.control import restart_backend as restart

    told = _told(lambda: restart(data_dir, timeout_s=timeout_s))
    out.print(told, markup=False, highlight=False, soft_wrap=True)


@policy_cli.command("show")
def policy_show() -> None:
    """Show the policy in force."""

    async def show(store: PolicyStore) -> None:
        out.print(_policy_table([store.current], f"Policy in force (from {store.source})"))

    _with_store(show)


@policy_cli.command("history")
def policy_history(limit: Annotated[int, typer.Option(min=1)] = 20) -> None:
    """Show the newest versions of the policy, newest first."""

    async def history(store: PolicyStore) -> None:
        out.print(_policy_table(await store.history(limit), "Policy history"))

    _with_store(history)


@policy_cli.command("set")
def policy_set(
    reason: Annotated[str, typer.Option(help="Why; kept in the history.")],
    n: Annotated[int | None, typer.Option(min=1, help="N for requests that do not say.")] = None,
    n_max: Annotated[int | None, typer.Option(min=1, help="N of exploration requests.")] = None,
    exploration: Annotated[float | None, typer.Option(min=0, max=1, help="Share of exploration requests.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Temperature for callers who set none.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter that answers; empty for the base model.")] = None,
    urls: Annotated[str | None, typer.Option(help="Where it answers (commas between); empty: settings'.")] = None,
    canary_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of a second policy's conversations; 0 ends it.")
    ] = None,
    canary_adapter: Annotated[str | None, typer.Option(help="The second policy's adapter; empty for the base.")] = None,
    canary_n: Annotated[int | None, typer.Option(min=1, help="The second policy's N.")] = None,
    canary_urls: Annotated[str | None, typer.Option(help="The second policy's URLs; empty: the settings'.")] = None,
    canary_temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="The second policy's default temperature.")
    ] = None,
) -> None:
    """Publish a new version; running gateways take it within seconds."""
    changes = _served(n=n, default_temperature=temperature, adapter=adapter, urls=urls) | _given(
        n_max=n_max, exploration=exploration
    )
    canary = _served(n=canary_n, default_temperature=canary_temperature, adapter=canary_adapter, urls=canary_urls)
    canary |= _given(share=canary_share)
    if not changes and not canary:
        err.print("[red]nothing to change:[/] give at least one option beside --reason (--help lists them)")
        raise typer.Exit(2)

    async def publish(store: PolicyStore) -> None:
        current = store.current
        if canary:
            changes["canary"] = _canary(current, canary)
        if "adapter" in changes and changes["adapter"] != current.adapter and n is None:
            err.print(f"[yellow]N stays {current.n}[/], which was measured with another adapter: --n changes it")
        await store.publish(current.successor(reason=reason, **changes))
        out.print(_policy_table([store.current], "Published"))
        for arm in (store.current.stable, store.current.second):
            if arm is not None and arm.adapter is not None and arm.adapter not in store.current.checks:
                err.print(
                    f"[yellow]not checked:[/] nothing says what {arm.adapter} answers, so a TGI that serves the base "
                    "under its name goes unnoticed; a night publishes that with the adapter",
                    highlight=False,
                    soft_wrap=True,
                )

    _with_store(publish)


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _served(*, adapter: str | None, urls: str | None, **numbers: float | None) -> dict[str, object]:
    """What was said of one of the two policies, in the document's terms: empty is the base, or the settings' URLs."""
    changes = _given(**numbers)
    if adapter is not None:
        changes["adapter"] = adapter or None
    if urls is not None:
        changes["urls"] = tuple(url.strip() for url in urls.split(",") if url.strip())
    return changes


def _canary(current: Policy, changes: dict[str, object]) -> dict[str, object] | None:
    """The second policy with its changes: what runs now, or else one like the first; None ends it."""
    if changes.get("share") == 0:
        return None
    if current.canary is not None:
        return current.canary.model_dump() | changes
    like_stable = current.model_dump(include={"adapter", "n", "urls", "default_temperature"})
    return like_stable | {"trial": f"by hand, version {current.version + 1}"} | changes


@key_cli.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="Whose key it is; only for people who read the file.")],
    scopes: Annotated[str, typer.Option(help="What it may do: chat, feedback, admin, with commas.")] = "chat,feedback",
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="Prompts and all draws; 0: no limit.")] = 0,
    races_in_flight: Annotated[int, typer.Option(min=0, help="Requests at once; 0: no limit.")] = 0,
) -> None:
    """Make an API key: the key for its owner, and the line for the key file, which gateways re-read by themselves."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "races_in_flight": races_in_flight,
    }
    key, line = _told(lambda: new_key(name, scopes=scopes, limits=limits))
    out.print(f"The key, shown only now:  {key}", highlight=False, soft_wrap=True)
    out.print(f"Add to the key file:      {line}", highlight=False, soft_wrap=True)


@cli.command()
def settings(
    env: Annotated[bool, typer.Option("--env", help="As .env.example, not as a table.")] = False,
) -> None:
    """List every setting, its default and what it means."""
    rows = variables()
    typer.echo(environment.example(rows, _ENV_HEADER) if env else environment.table(rows), nl=False)


def _settings() -> Settings:
    return _told(load)


def _with_store(use: Callable[[PolicyStore], Awaitable[None]]) -> None:
    """Open the policy store as a gateway would, use it once, close it."""
    settings = _settings()
    configure_logging("error", "console")

    async def run() -> None:
        async with PolicyStore.opened(settings) as store:
            await use(store)

    _told(lambda: asyncio.run(run()))


def _policy_table(policies: list[Policy], title: str) -> Table:
    table = Table("version", "n", "n_max", "temperature", "exploration", "adapter", "created", "reason", title=title)
    for policy in policies:
        table.add_row(
            str(policy.version),
            str(policy.n),
            str(policy.n_max),
            "" if policy.default_temperature is None else str(policy.default_temperature),
            f"{policy.exploration:.1%}",
            _where(policy.stable),
            f"{policy.created:%Y-%m-%d %H:%M:%S}",
            policy.reason,
        )
        second = policy.second
        if second is not None and policy.canary is not None:
            temperature = "" if second.default_temperature is None else str(second.default_temperature)
            share = f"{second.name} {policy.canary.share:.1%}"
            table.add_row("", str(second.n), "", temperature, "", _where(second), share, policy.canary.trial)
    return table


def _where(arm: Arm) -> str:
    return " at ".join([arm.adapter or "(base)", *([", ".join(arm.urls)] if arm.urls else [])])


def _told(action: Callable[[], T]) -> T:
    """Run a command's work; an error of ours is one line, not a trace."""
    try:
        return action()
    except GatewayError as error:
        err.print(f"[red]{type(error).__name__}:[/] {error.message}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


if __name__ == "__main__":
    cli()
