"""``conformance``: whether a configured instance keeps the contract with providers."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final

import attrs
import click

from kms_core.assembly import build_provider
from kms_core.cli import configuration
from kms_core.cli.exits import ExitCode, printable
from kms_core.cli.options import Invocation, invocation, json_option
from kms_core.errors import InvalidRequest
from kms_core.plugins import Plugins
from kms_core.settings import Settings

if TYPE_CHECKING:
    from kms_core.testing.live import Check, Connect

_EXTRA: Final = ("pytest", "hypothesis")


@click.command()
@click.argument("instance")
@click.option(
    "-k",
    "expression",
    metavar="EXPR",
    default="",
    help='Only the checks whose names fit, such as "context and not data_key".',
)
@click.option("--rotate", is_flag=True, help="Allow rotating the key, for the checks that do.")
@json_option
@invocation
@click.pass_context
def conformance(
    ctx: click.Context,
    invocation: Invocation,
    instance: str,
    expression: str,
    *,
    rotate: bool,
    as_json: bool,
) -> None:
    """Check that INSTANCE keeps the contract with providers, by using its key.

    Some hundred requests; the key itself is not changed. Exits with 1 if a check fails. --json has:
    instance, passed, failed, skipped, checks (name, outcome, reason).
    """
    if any(find_spec(name) is None for name in _EXTRA):
        raise click.UsageError("the checks need an extra: pip install 'kms-core[testing]'")
    from kms_core.testing import live

    settings = Settings.from_raw(configuration.find(invocation.config))
    connect, module = _instance(settings, instance)
    checks = live.run(connect, module, may_rotate=rotate, expression=expression)
    if as_json:
        click.echo(json.dumps(_as_json(instance, checks), indent=2))
    else:
        for line in _lines(checks):
            click.echo(printable(line))
    if any(check.outcome == "failed" for check in checks):
        ctx.exit(ExitCode.FAILED)


def _instance(settings: Settings, name: str) -> tuple[Connect, str]:
    """How to open the instance as a client would, and the name of its plugin's module."""
    source = settings.raw.source
    if name not in settings.instances:
        names = ", ".join(settings.instances)
        raise InvalidRequest(f"{source}: no instance {name!r}; there are: {names}")
    plugins = Plugins()
    build_provider(settings, plugins, name)  # what is wrong with it shows before any check

    @contextmanager
    def connect() -> Iterator[tuple[Any, str]]:
        provider, key = build_provider(settings, plugins, name)
        getattr(provider, "prepare", _nothing)()
        try:
            yield provider, key
        finally:
            getattr(provider, "close", _nothing)()

    plugin = settings.instances[name].provider
    return connect, plugins.require(plugin, source).module.__name__


def _nothing() -> None:
    """What a provider does that has nothing to prepare or to close."""


def _lines(checks: Sequence[Check]) -> Iterator[str]:
    for check in checks:
        if check.outcome == "failed":
            yield f"failed: {check.name}: {' '.join(check.reason.split())}"
    reasons = Counter(check.reason for check in checks if check.outcome == "skipped")
    for reason, number in reasons.items():
        yield f"skipped {number}: {reason}"
    counts = _counts(checks)
    yield ", ".join(f"{number} {outcome}" for outcome, number in counts.items())


def _counts(checks: Sequence[Check]) -> dict[str, int]:
    counts = Counter(check.outcome for check in checks)
    return {outcome: counts[outcome] for outcome in ("passed", "failed", "skipped")}


def _as_json(instance: str, checks: Sequence[Check]) -> dict[str, Any]:
    rows = [attrs.asdict(check) for check in checks]
    return {"instance": instance, **_counts(checks), "checks": rows}
