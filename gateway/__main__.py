"""``python -m gateway``: serve · reward · demo · restart-backend · policy · key · settings."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gateway import environment, workers
from gateway.api.keyfile import new_key
from gateway.app import build
from gateway.errors import GatewayError
from gateway.policy import Policy, PolicyStore
from gateway.redis_client import check_redis
from gateway.settings import load, variables
from gateway.telemetry import configure_logging
from gateway.types import Arm

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
        bool, typer.Option("--embedded", help="Also start Redis, llama.cpp and a small reward model.")
    ] = False,
) -> None:
    """Serve the chat API, with settings from the environment."""
    if embedded:
        from gateway.embedded.serve import main as serve_embedded

        raise typer.Exit(serve_embedded())
    with _exit_on_error():
        settings = load()
        # An error in each worker would be printed by each: find it here. build() starts no thread and loads no model.
        build(settings)
        asyncio.run(check_redis(settings.redis))
    workers.serve(settings)


@cli.command()
def reward() -> None:
    """Serve the configured reward model over /classify, for many gateway workers to share."""
    from gateway.reward.server import serve as serve_rewards

    with _exit_on_error():
        serve_rewards(load())


@cli.command()
def demo() -> None:
    """Run best-of-N on real weights, a real Redis and OpenAI's client, all on this machine."""
    from gateway.demo.demo import main

    raise typer.Exit(main())


@cli.command()
def restart_backend(
    data_dir: Annotated[Path, typer.Option(help="Folder of the embedded stack.")] = Path("data/embedded"),
    timeout_s: Annotated[float, typer.Option(min=1, help="Longest time to wait for the restart.")] = 600.0,
) -> None:
    """Restart the running embedded stack's replicas, one after the other, with the adapters in its folder."""
    from gateway.embedded import control

    with _exit_on_error():
        served = control.restart_backend(data_dir, timeout_s=timeout_s)
    out.print(served, markup=False, highlight=False, soft_wrap=True)


@policy_cli.command("show")
def policy_show() -> None:
    """Show the policy in force."""

    async def show() -> None:
        async with _policy_store() as store:
            out.print(_policy_table([store.current], f"Policy in force (from {store.source})"))

    with _exit_on_error():
        asyncio.run(show())


@policy_cli.command("history")
def policy_history(limit: Annotated[int, typer.Option(min=1, help="Most versions to show.")] = 20) -> None:
    """Show the latest versions of the policy, newest first."""

    async def show() -> None:
        async with _policy_store() as store:
            out.print(_policy_table(await store.history(limit), "Policy history"))

    with _exit_on_error():
        asyncio.run(show())


@policy_cli.command("set")
def policy_set(
    reason: Annotated[str, typer.Option(help="Reason of the change, for the history.")],
    n: Annotated[int | None, typer.Option(min=1, help="N of requests that set none.")] = None,
    n_max: Annotated[int | None, typer.Option(min=1, help="N of exploration requests.")] = None,
    exploration: Annotated[float | None, typer.Option(min=0, max=1, help="Share of exploration requests.")] = None,
    temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="Temperature of requests that set none.")
    ] = None,
    adapter: Annotated[str | None, typer.Option(help="Adapter that serves; empty: the base model.")] = None,
    urls: Annotated[str | None, typer.Option(help="Its servers, with commas between; empty: the settings'.")] = None,
    canary_share: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of conversations for a second policy; 0 ends it.")
    ] = None,
    canary_adapter: Annotated[str | None, typer.Option(help="The second policy's adapter; empty: the base.")] = None,
    canary_n: Annotated[int | None, typer.Option(min=1, help="The second policy's N.")] = None,
    canary_urls: Annotated[str | None, typer.Option(help="The second policy's servers; empty: the settings'.")] = None,
    canary_temperature: Annotated[
        float | None, typer.Option(min=0, max=2, help="The second policy's default temperature.")
    ] = None,
) -> None:
    """Publish a new version of the policy; running gateways load it within seconds."""
    changes = _arm_fields(n=n, default_temperature=temperature, adapter=adapter, urls=urls)
    changes |= _given(n_max=n_max, exploration=exploration)
    canary = _arm_fields(n=canary_n, default_temperature=canary_temperature, adapter=canary_adapter, urls=canary_urls)
    canary |= _given(share=canary_share)
    if not changes and not canary:
        err.print("[red]nothing to change:[/] give at least one option besides --reason (--help lists them)")
        raise typer.Exit(2)

    async def publish() -> None:
        async with _policy_store() as store:
            current = store.current
            if canary:
                changes["canary"] = _canary_fields(current, canary)
            if "adapter" in changes and changes["adapter"] != current.adapter and n is None:
                err.print(f"[yellow]N stays {current.n}[/], which was measured with another adapter: --n changes it")
            await store.publish(current.successor(reason=reason, **changes))
            out.print(_policy_table([store.current], "Published"))
            _warn_about_unchecked_adapters(store.current)

    with _exit_on_error():
        asyncio.run(publish())


@key_cli.command("new")
def key_new(
    name: Annotated[str, typer.Argument(help="The key's owner; only for people who read the file.")],
    scopes: Annotated[str, typer.Option(help="Allowed uses: chat, feedback, admin, with commas.")] = "chat,feedback",
    requests_per_minute: Annotated[int, typer.Option(min=0, help="0: no limit.")] = 0,
    tokens_per_minute: Annotated[int, typer.Option(min=0, help="Of prompts and all candidates; 0: no limit.")] = 0,
    races_in_flight: Annotated[int, typer.Option(min=0, help="Requests at once; 0: no limit.")] = 0,
) -> None:
    """Make an API key: the key for its owner, and the line for the key file, which gateways reload by themselves."""
    limits = {
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "races_in_flight": races_in_flight,
    }
    with _exit_on_error():
        key, line = new_key(name, scopes=scopes, limits=limits)
    out.print(f"The key, shown only now:  {key}", highlight=False, soft_wrap=True)
    out.print(f"Add to the key file:      {line}", highlight=False, soft_wrap=True)


@cli.command()
def settings(
    env: Annotated[bool, typer.Option("--env", help="As .env.example, not as a table.")] = False,
) -> None:
    """List every setting, its default and its meaning."""
    rows = variables()
    typer.echo(environment.example(rows, _ENV_HEADER) if env else environment.table(rows), nl=False)


@contextmanager
def _exit_on_error() -> Iterator[None]:
    """Print an error of the gateway as one line and exit with 2."""
    try:
        yield
    except GatewayError as error:
        err.print(f"[red]{type(error).__name__}:[/] {error.message}", highlight=False, soft_wrap=True)
        raise typer.Exit(2) from error


@asynccontextmanager
async def _policy_store() -> AsyncIterator[PolicyStore]:
    settings = load()
    configure_logging("error", "console")
    async with PolicyStore.opened(settings) as store:
        yield store


def _given(**options: object) -> dict[str, object]:
    return {name: value for name, value in options.items() if value is not None}


def _arm_fields(*, adapter: str | None, urls: str | None, **numbers: float | None) -> dict[str, object]:
    """Return the given options as fields of the policy; an empty text is the base, or the settings' URLs."""
    fields = _given(**numbers)
    if adapter is not None:
        fields["adapter"] = adapter or None
    if urls is not None:
        fields["urls"] = environment.split_list(urls)
    return fields


def _canary_fields(current: Policy, changes: dict[str, object]) -> dict[str, object] | None:
    """Return the second policy after the changes, at first a copy of the stable one; None ends it."""
    if changes.get("share") == 0:
        return None
    if current.canary is not None:
        return current.canary.model_dump() | changes
    like_stable = current.model_dump(include={"adapter", "n", "urls", "default_temperature"})
    return like_stable | {"trial": f"by hand, version {current.version + 1}"} | changes


def _warn_about_unchecked_adapters(policy: Policy) -> None:
    for arm in (policy.stable, policy.second):
        if arm is not None and arm.adapter is not None and arm.adapter not in policy.checks:
            err.print(
                f"[yellow]not checked:[/] the policy has no weight check for {arm.adapter}, so a TGI that serves the "
                "base under its name goes unnoticed; a night publishes the check with its adapter",
                highlight=False,
                soft_wrap=True,
            )


def _policy_table(policies: list[Policy], title: str) -> Table:
    table = Table("version", "n", "n_max", "temperature", "exploration", "adapter", "created", "reason", title=title)
    for policy in policies:
        table.add_row(
            str(policy.version),
            str(policy.n),
            str(policy.n_max),
            "" if policy.default_temperature is None else str(policy.default_temperature),
            f"{policy.exploration:.1%}",
            _adapter_at(policy.stable),
            f"{policy.created:%Y-%m-%d %H:%M:%S}",
            policy.reason,
        )
        second = policy.second
        if second is not None and policy.canary is not None:
            temperature = "" if second.default_temperature is None else str(second.default_temperature)
            share = f"{second.name} {policy.canary.share:.1%}"
            table.add_row("", str(second.n), "", temperature, "", _adapter_at(second), share, policy.canary.trial)
    return table


def _adapter_at(arm: Arm) -> str:
    return " at ".join([arm.adapter or "(base)", *([", ".join(arm.urls)] if arm.urls else [])])


if __name__ == "__main__":
    cli()
