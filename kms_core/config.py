"""From TOML or the environment to checked tables, and from a table to an attrs object.

Every error names file, table and key, and the nearest valid name.  Secrets are never literal: they
are read from a variable or a file.  This is the only module that reads the environment.
"""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import attrs

from kms_core.errors import ConfigError
from kms_core.types import Duration, Secret

T = TypeVar("T")

CONFIG_VARIABLE: Final = "KMS_CONFIG"
FILE_NAME: Final = "kms.toml"
TABLES: Final = (
    *("instances", "envelope", "breaker", "calls", "monitor"),
    *("plugins", "cache", "audit"),
)
MAX_FILE_BYTES: Final = 1 << 20  # a configuration is written by hand; more is a mistake
_UNITS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]{1,12}(?:\.[0-9]{1,12})?)\s*(ms|s|m|h|d)")
_FOR_EVER: Final = 1e12  # seconds


@attrs.frozen
class Raw:
    """Tables as they were written; ``base`` is what relative paths are relative to."""

    tables: Mapping[str, Any]
    source: str
    base: Path
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ, repr=False)


def load(path: str | os.PathLike[str], environ: Mapping[str, str] | None = None) -> Raw:
    """Read one TOML file; raises ``ConfigError``."""
    import tomllib  # a client built from objects does without

    file = Path(path)
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read configuration {file}: {exc.strerror}") from exc
    if len(data) > MAX_FILE_BYTES:
        raise ConfigError(f"{file} is larger than {MAX_FILE_BYTES} bytes")
    try:
        tables = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as exc:  # also of a number or nesting beyond all reason
        raise ConfigError(f"{file} is not valid TOML: {exc}") from exc
    check_names(tables, TABLES, str(file))
    return Raw(
        tables, str(file), file.absolute().parent, os.environ if environ is None else environ
    )


def user_file(environ: Mapping[str, str]) -> Path:
    """Where a user's own configuration lives, whether or not it exists."""
    home = environ.get("XDG_CONFIG_HOME") or environ.get("APPDATA")
    return (Path(home) if home else Path.home() / ".config") / "kms" / FILE_NAME


def find(environ: Mapping[str, str] | None = None) -> Raw:
    """The configuration of ``$KMS_CONFIG``, the user's folder, or the environment itself."""
    environ = os.environ if environ is None else environ
    if named := environ.get(CONFIG_VARIABLE):
        return load(named, environ)
    file = user_file(environ)
    return load(file, environ) if file.is_file() else from_environment(environ)


def from_environment(environ: Mapping[str, str] | None = None) -> Raw:
    """One instance per service that the environment describes; raises ``ConfigError`` if none."""
    environ = os.environ if environ is None else environ
    instances: dict[str, dict[str, str]] = {}
    if key := environ.get("KMS_AWS_KEY"):
        instances["aws"] = {"provider": "aws-kms", "key": key}
        if region := environ.get("AWS_REGION"):
            instances["aws"]["region"] = region
    if key := environ.get("KMS_AZURE_KEY"):
        vault = _needed(environ, "AZURE_KEY_VAULT_URL", "KMS_AZURE_KEY")
        instances["azure"] = {"provider": "azure-keyvault", "key": key, "vault_url": vault}
    if key := environ.get("KMS_GCP_KEY"):
        project = _needed(environ, "GCP_PROJECT_ID", "KMS_GCP_KEY")
        instances["gcp"] = {"provider": "gcp-kms", "key": key, "project": project}
    if not instances:
        raise ConfigError(
            "no configuration: write kms.toml (`kms init`), name one in $KMS_CONFIG, or set "
            "AWS_REGION and KMS_AWS_KEY, AZURE_KEY_VAULT_URL and KMS_AZURE_KEY, or "
            "GCP_PROJECT_ID and KMS_GCP_KEY"
        )
    return Raw({"instances": instances}, "the environment", Path.cwd(), environ)


def _needed(environ: Mapping[str, str], name: str, because: str) -> str:
    value = environ.get(name)
    if not value:
        raise ConfigError(f"{because} is set and {name} is not: set both")
    return value


def check_names(table: Mapping[str, Any], known: Iterable[str], where: str) -> None:
    """Raise ``ConfigError`` for the first key that is not known, with the nearest that is."""
    known = tuple(known)
    for name in table:
        if name not in known:
            near = nearest(name, known)
            hint = f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"
            raise ConfigError(f"{where}: unknown key {name!r}; {hint}")


def nearest(name: str, known: Iterable[str]) -> str:
    """What somebody who wrote ``name`` may have meant, or ``""``."""
    import difflib  # only mistakes need it

    return next(iter(difflib.get_close_matches(name, known, n=1)), "")


def table(value: Any, where: str) -> Mapping[str, Any]:
    """``value`` if it is a table; raises ``ConfigError``."""
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: must be a table, not {_kind(value)}")
    return value


def structure(cls: type[T], values: Mapping[str, Any], where: str, raw: Raw) -> T:
    """Build an attrs object from a table; raises ``ConfigError`` naming table and key."""
    hints = typing.get_type_hints(cls)
    fields = [name for name, field in attrs.fields_dict(cls).items() if field.init]  # type: ignore[arg-type]
    check_names(values, fields, where)
    converted = {
        name: _convert(value, hints[name], f"{where}: {name}", raw)
        for name, value in values.items()
    }
    for name, field in attrs.fields_dict(cls).items():  # type: ignore[arg-type]
        if field.init and field.default is attrs.NOTHING and name not in converted:
            raise ConfigError(f"{where}: {name} is missing")
    try:
        return cls(**converted)
    except (ValueError, TypeError) as exc:
        raise ConfigError(f"{where}: {_reason(exc)}") from exc


def _reason(error: Exception) -> str:
    text = error.args[0] if error.args and isinstance(error.args[0], str) else str(error)
    return " ".join(text.split())


def _convert(value: Any, hint: Any, where: str, raw: Raw) -> Any:
    union = isinstance(hint, types.UnionType) or typing.get_origin(hint) is typing.Union
    options = typing.get_args(hint) if union else (hint,)
    if value is None and types.NoneType in options:
        return None
    target = next(option for option in options if option is not types.NoneType)
    if target is Secret:
        return _secret(value, where, raw)
    if target is Path and isinstance(value, str | Path):
        return _path(value, where, raw)
    return _plain(value, target, where)


def _plain(value: Any, target: Any, where: str) -> Any:
    """A value that means the same wherever it was written."""
    if target is Duration:
        return _duration(value, where)
    if typing.get_origin(target) is tuple:
        return _strings(value, where)
    if typing.get_origin(target) is typing.Literal:
        return _choice(value, typing.get_args(target), where)
    if not _is(value, target):
        whole = target is int and isinstance(value, float)
        expected = "a whole number" if whole else _kind_of(target)
        raise ConfigError(f"{where}: must be {expected}, not {_kind(value)}")
    return value


def _is(value: Any, target: Any) -> bool:
    if isinstance(value, bool):  # which Python counts among the integers
        return target is bool
    return isinstance(value, int | float) if target is float else isinstance(value, target)


def _choice(value: Any, choices: tuple[Any, ...], where: str) -> Any:
    if value not in choices:
        raise ConfigError(f"{where}: must be one of {', '.join(map(repr, choices))}")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ConfigError(f"{where}: must be a list of strings")
    return tuple(value)


def _duration(value: Any, where: str) -> Duration:
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _FOR_EVER:
        return Duration(float(value))
    match = _DURATION.fullmatch(value.strip()) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(f'{where}: must be seconds or a duration such as "500ms", "3s" or "5m"')
    return Duration(float(match[1]) * _UNITS[match[2]])


def _path(value: str | Path, where: str, raw: Raw) -> Path:
    try:
        return raw.base / Path(value).expanduser()
    except RuntimeError as exc:  # no such user
        raise ConfigError(f"{where}: {exc}") from exc


def _secret(value: Any, where: str, raw: Raw) -> Secret:
    if isinstance(value, Secret):
        return value
    if not isinstance(value, Mapping) or set(value) not in ({"env"}, {"file"}):
        raise ConfigError(
            f'{where}: a secret is never written down here; use {{ env = "NAME" }} '
            f'or {{ file = "/path" }}'
        )
    if "env" in value:
        found = raw.environ.get(str(value["env"]))
        if not found:
            raise ConfigError(f"{where}: environment variable {shown(value['env'])} is not set")
        return Secret(found)
    path = _path(str(value["file"]), where, raw)
    try:
        text = path.read_text().rstrip("\r\n")
    except (OSError, ValueError):  # also of a name with a null, or bytes that are not text
        raise ConfigError(f"{where}: cannot read the secret in {shown(path)}") from None
    if not text:
        raise ConfigError(f"{where}: the secret in {shown(path)} is empty")
    return Secret(text)


def shown(name: object) -> str:
    """As it was written, or escaped where that would not be one line of text."""
    text = str(name)
    return text if text.isprintable() else repr(text)


def _kind(value: Any) -> str:
    return _kind_of(type(value))


def _kind_of(kind: type[Any]) -> str:
    names = {str: "a string", bool: "true or false", int: "a number", float: "a number"}
    return names.get(kind, "a table" if issubclass(kind, Mapping) else f"a {kind.__name__}")
