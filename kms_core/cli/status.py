"""``health`` and ``plugins``: what works, what does not, and why."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Any, Final, NoReturn

import click
from attrs import asdict, field, frozen, validators

from kms_core import config
from kms_core.cli import configuration
from kms_core.cli.exits import ExitCode, say
from kms_core.cli.options import Invocation, invocation, json_option
from kms_core.errors import ConfigError, PluginError
from kms_core.plugins import Plugins
from kms_core.settings import Settings
from kms_core.types import Duration, HealthReport, PluginInfo

if TYPE_CHECKING:
    from rich.console import RenderableType

_SHORTEST_INTERVAL: Final = 0.1  # seconds; asking is a call to every service


@frozen
class _Watching:
    """The option ``--interval``, read as the configuration reads durations."""

    interval: Duration = field(validator=validators.ge(Duration(_SHORTEST_INTERVAL)))


@click.command()
@json_option
@click.option("--deep", is_flag=True, help="Prove each key by wrapping and unwrapping something.")
@click.option("--watch", is_flag=True, help="Ask again and again, until Ctrl-C.")
@click.option(
    "--interval",
    metavar="DURATION",
    default="2s",
    show_default=True,
    help='How long to wait in between with --watch, such as "500ms" or "1m".',
)
@invocation
@click.pass_context
def health(
    ctx: click.Context,
    invocation: Invocation,
    interval: str,
    *,
    as_json: bool,
    deep: bool,
    watch: bool,
) -> None:
    """Ask every instance whether it is well.

    Exits with 0 when healthy or degraded, with 3 when sealing would fail. --json has: status,
    reason, instances (by name: state, breaker, latency in seconds, reason, proven: seconds since
    the last good unwrap, stuck: calls that hang); with --watch, one object a line.
    """
    from kms_core.cli.clients import connect

    pause = config.structure(_Watching, {"interval": interval}, "kms health", _no_file()).interval
    with connect(invocation) as (kms, _):
        if watch:
            _watch(partial(kms.health, deep=deep), pause, as_json=as_json)
        report = kms.health(deep=deep)
        _show(report, as_json=as_json)
        if report.status != "healthy":
            say(f"{report.status}: {report.reason}")
        if report.status == "unhealthy":
            ctx.exit(ExitCode.UNAVAILABLE)


@click.command()
@json_option
@click.option(
    "--check/--no-check",
    default=True,
    show_default=True,
    help="Import and validate each plugin.",
)
@invocation
def plugins(invocation: Invocation, *, as_json: bool, check: bool) -> None:
    """List every plugin that is installed, or missing and needed.

    --json has a list of: name, state (available, loaded, missing, incompatible, failed), needed
    (by the configuration; null if there is none that can be read), distribution, version, hooks,
    reason.
    """
    needed = _needed(invocation)
    known = Plugins()
    if check:
        known.check()
    for name in _to_require(known, needed or (), check=check):
        with suppress(PluginError):  # which the list shows
            known.require(name, "the configuration")
    rows = [_as_row(info, needed) for info in known]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        _draw_plugins(rows)


# --- health --------------------------------------------------------------------------------------


def _no_file() -> config.Raw:
    return config.Raw({}, "the command line", Path.cwd())


def _watch(ask: Callable[[], HealthReport], pause: float, *, as_json: bool) -> NoReturn:
    """Show one report after the other; only an exception, such as Ctrl-C, ends it."""
    from rich.live import Live

    from kms_core.cli.drawing import console

    screen = console()
    if as_json or not screen.is_terminal:
        while True:
            _show(ask(), as_json=as_json, indent=None)
            sleep(pause)
    with Live(console=screen, auto_refresh=False) as live:
        while True:
            live.update(_health_table(ask()), refresh=True)
            sleep(pause)


def _show(report: HealthReport, *, as_json: bool, indent: int | None = 2) -> None:
    from kms_core.cli.drawing import draw

    if as_json:
        click.echo(json.dumps(_health_as_json(report), indent=indent))
    else:
        draw(_health_table(report))


def _health_as_json(report: HealthReport) -> dict[str, Any]:
    instances = {name: asdict(instance) for name, instance in report.instances.items()}
    return {"status": report.status, "reason": report.reason, "instances": instances}


def _health_table(report: HealthReport) -> RenderableType:
    from kms_core.cli.drawing import cell, table

    drawn = table("instance", "state", "breaker", "latency", "reason", folding=("reason",))
    drawn.title = f"status: {report.status}"
    drawn.title_justify = "left"
    for name, instance in report.instances.items():
        latency = "" if instance.latency is None else f"{instance.latency * 1000:.0f} ms"
        values = (name, instance.state, instance.breaker, latency, instance.reason)
        drawn.add_row(*map(cell, values))
    return drawn


# --- plugins -------------------------------------------------------------------------------------


def _needed(invocation: Invocation) -> frozenset[str] | None:
    """The plugins that the configuration names; ``None``, said on stderr, if there is none."""
    try:
        settings = Settings.from_raw(configuration.find(invocation.config))
    except ConfigError as exc:
        say(f"which plugins are needed is not known: {exc}")
        return None
    providers = (instance.provider for instance in settings.instances.values())
    return frozenset((*providers, *settings.plugins))


def _to_require(known: Plugins, needed: Iterable[str], *, check: bool) -> list[str]:
    """Those to be marked as needed: without ``check`` only the absent, which imports nothing."""
    found = {info.name for info in known}
    return sorted(name for name in needed if check or name not in found)


def _as_row(info: PluginInfo, needed: frozenset[str] | None) -> dict[str, Any]:
    return {
        "name": info.name,
        "state": info.state,
        "needed": None if needed is None else info.name in needed,
        "distribution": info.distribution,
        "version": info.version,
        "hooks": list(info.hooks),
        "reason": info.reason,
    }


def _draw_plugins(rows: Iterable[Mapping[str, Any]]) -> None:
    from kms_core.cli.drawing import cell, draw, table

    drawn = table(
        *("plugin", "state", "needed", "distribution", "hooks", "reason"),
        folding=("hooks", "reason"),
    )
    for row in rows:
        drawn.add_row(
            cell(row["name"]),
            cell(row["state"]),
            cell("yes" if row["needed"] else ""),
            cell(" ".join(filter(None, (row["distribution"], row["version"])))),
            cell(", ".join(row["hooks"])),
            cell(row["reason"]),
        )
    draw(drawn)
