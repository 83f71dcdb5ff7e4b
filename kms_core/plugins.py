"""Finding, validating and loading plugins.

Only what the configuration names is imported.  A plugin that fails does so alone, with its reason
on record; one that is needed and failed is a ``PluginError`` at start.  Validation happens before
any instance exists, on a manager that is thrown away: a broken plugin never reaches a real one.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any, Final

import attrs
import pluggy

from kms_core.config import nearest
from kms_core.errors import PluginError
from kms_core.hookspecs import API_VERSION, GROUP, PROJECT, PluginSpec, ProviderSpec
from kms_core.types import PluginInfo, Provider

if TYPE_CHECKING:
    from importlib.metadata import Distribution

REQUIRED_HOOKS: Final = ("encrypt", "decrypt", "health")
PROTECTIONS: Final = ("hsm", "software", "local")
#: The distributions of the providers this project maintains, for the hint "install …".
KNOWN_DISTRIBUTIONS: Final = {
    "aws-kms": "kms-aws",
    "azure-keyvault": "kms-azure",
    "gcp-kms": "kms-gcp",
    "local": "kms-local",
    "pkcs11": "kms-pkcs11",
}
_GROUP = re.compile(rf"{PROJECT}\.v(\d+)")
_TYPE_NAME = re.compile(r"[a-z][a-z0-9-]*")


class Invalid(Exception):
    """Why a plugin does not keep the contract."""


@attrs.frozen
class Found:
    """One entry point, not imported."""

    name: str
    distribution: str
    version: str
    api_version: int
    load: Callable[[], object]


@attrs.frozen
class Loaded:
    """A plugin module that keeps the contract, with the provider class it brings, if any."""

    module: ModuleType
    provider: type[Provider] | None


def discover() -> Iterator[Found]:
    """Every installed entry point of this project's groups, of any contract version."""
    from importlib import metadata  # brings email, zipfile and socket

    seen: set[str] = set()
    for distribution in metadata.distributions():
        if not _may_be_ours(distribution):  # parsing what all are called takes far longer
            continue
        name = re.sub(r"[-_.]+", "-", distribution.metadata["Name"] or "").lower()
        if not name or name in seen:
            continue
        seen.add(name)
        try:
            first = metadata.distribution(name)  # another may shadow it, as imports would be
            entries = first.entry_points
        except Exception:  # noqa: BLE001, S112  what a stranger installed badly stops nobody
            continue
        for entry in entries:
            if match := _GROUP.fullmatch(entry.group):
                yield Found(entry.name, name, first.version, int(match[1]), entry.load)


def _may_be_ours(distribution: Distribution) -> bool:
    try:
        return f"[{PROJECT}.v" in (distribution.read_text("entry_points.txt") or "")
    except Exception:  # noqa: BLE001  of a stranger
        return False


class Plugins:
    """The plugins one client can see, and the state of each."""

    def __init__(self, found: Iterable[Found] | None = None) -> None:
        self._found: dict[str, list[Found]] = {}
        for plugin in discover() if found is None else found:
            self._found.setdefault(plugin.name, []).append(plugin)
        self._loaded: dict[str, Loaded] = {}
        self._reasons: dict[str, str] = {}
        self._needed: set[str] = set()

    def need(self, name: str) -> None:
        """Load a plugin if that can be done; its state tells."""
        self._needed.add(name)
        self._load(name)

    def require(self, name: str, what: str) -> Loaded:
        """Load a plugin that ``what`` needs; raises ``PluginError`` with the reason."""
        self.need(name)
        if name not in self._loaded:
            info = self._describe(name)
            raise PluginError(f"{what} needs plugin {name!r}, which is {info.state}: {info.reason}")
        return self._loaded[name]

    def require_provider(self, name: str, what: str) -> type[Provider]:
        """The provider class of type ``name``; raises ``PluginError`` if there is none."""
        provider = self.require(name, what).provider
        if provider is None:
            raise PluginError(f"{what} needs a provider, and plugin {name!r} brings none")
        return provider

    def check(self) -> None:
        """Import and validate every plugin found, needed or not: what ``kms plugins`` does."""
        for name in self._found:
            self._load(name)

    def modules(self, first: Iterable[str] = ()) -> Mapping[str, ModuleType]:
        """The needed modules by name, those named in ``first`` in front and in that order."""
        names = dict.fromkeys((*first, *sorted(self._needed)))
        return {name: self._loaded[name].module for name in names if name in self._loaded}

    def __iter__(self) -> Iterator[PluginInfo]:
        for name in sorted({*self._found, *self._needed}):
            yield self._describe(name)

    def _load(self, name: str) -> None:
        if name in self._loaded or name in self._reasons:
            return
        candidates = self._candidates(name)
        if len(candidates) != 1:  # missing, incompatible or claimed twice: nothing is imported
            return
        try:
            self._loaded[name] = _load(candidates[0])
        except KeyboardInterrupt:
            raise
        except Invalid as exc:
            self._reasons[name] = str(exc)
        except BaseException as exc:  # noqa: BLE001  isolation, also from SystemExit at import
            self._reasons[name] = f"import failed: {type(exc).__name__}: {_one_line(exc)}"

    def _candidates(self, name: str) -> list[Found]:
        return [found for found in self._found.get(name, ()) if found.api_version == API_VERSION]

    def _describe(self, name: str) -> PluginInfo:
        candidates = self._candidates(name)
        if len(candidates) > 1:
            claims = " and ".join(f"{found.distribution} {found.version}" for found in candidates)
            return PluginInfo(name, "failed", reason=f"claimed by {claims}: uninstall all but one")
        if not candidates:
            return self._describe_absent(name)
        found = candidates[0]
        if name in self._reasons:
            return PluginInfo(
                name, "failed", found.distribution, found.version, self._reasons[name]
            )
        loaded = self._loaded.get(name)
        return PluginInfo(
            name,
            "loaded" if loaded and name in self._needed else "available",
            found.distribution,
            found.version,
            hooks=_hooks(loaded) if loaded else (),
        )

    def _describe_absent(self, name: str) -> PluginInfo:
        others = self._found.get(name)
        if others:
            reason = f"speaks {PROJECT}.v{others[0].api_version}, this core speaks {GROUP}"
            return PluginInfo(
                name, "incompatible", others[0].distribution, others[0].version, reason
            )
        if name in KNOWN_DISTRIBUTIONS:
            return PluginInfo(name, "missing", reason=f"pip install {KNOWN_DISTRIBUTIONS[name]}")
        near = nearest(name, {*self._found, *KNOWN_DISTRIBUTIONS})
        hint = f"did you mean {near!r}?" if near else "is it installed in this environment?"
        return PluginInfo(name, "missing", reason=f"no installed distribution offers it; {hint}")


# --- validation ----------------------------------------------------------------------------------


def _load(found: Found) -> Loaded:
    module = found.load()
    if not isinstance(module, ModuleType):
        raise Invalid(f"the entry point is a {type(module).__name__}, not a module")
    _check_hooks(module, PluginSpec, ProviderSpec)
    _check_module(module)
    providers: list[type[Provider]] = []
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(PluginSpec)
    manager.add_hookspecs(ProviderSpec)
    manager.register(module)
    manager.hook.kms_register_providers(register=providers.append)
    for provider in providers:
        _check_provider(provider)
    by_type = {provider.type_name: provider for provider in providers}
    if len(by_type) != len(providers):
        raise Invalid("two of its provider classes have one type_name")
    if providers and found.name not in by_type:
        raise Invalid(f"it registers {', '.join(by_type)}, and its entry point says {found.name}")
    return Loaded(module, by_type.get(found.name))


def _check_hooks(plugin: object, *specs: type) -> None:
    """Unknown hooks and unknown arguments, as pluggy sees them, on a throw-away manager."""
    manager = pluggy.PluginManager(PROJECT)
    for spec in specs:
        manager.add_hookspecs(spec)
    try:
        manager.register(plugin)
        manager.check_pending()
    except pluggy.PluginValidationError as exc:
        raise Invalid(_explain(exc, specs)) from exc
    for name, function, options in _hookimpls(plugin):
        _check_signature(name, function, options)


def _explain(error: pluggy.PluginValidationError, specs: Iterable[type]) -> str:
    text = _one_line(error)
    if unknown := re.search(r"unknown hook '(\w+)'", text):
        known = [name for spec in specs for name in vars(spec) if not name.startswith("_")]
        near = nearest(unknown[1], known)
        return f"unknown hook {unknown[1]!r}" + (f", did you mean {near!r}?" if near else "")
    return text


def _hookimpls(plugin: object) -> Iterator[tuple[str, Callable[..., Any], Mapping[str, Any]]]:
    for name in dir(plugin):
        function = inspect.getattr_static(plugin, name, None)
        options = getattr(function, f"{PROJECT}_impl", None)
        if options is not None and callable(function):
            yield name, function, options


def _check_signature(name: str, function: Callable[..., Any], options: Mapping[str, Any]) -> None:
    wraps = options.get("wrapper")
    if options.get("hookwrapper"):
        raise Invalid(f"{name}: use wrapper=True, not hookwrapper=True")
    if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
        raise Invalid(f"{name} is async; hooks are synchronous")
    if inspect.isgeneratorfunction(function) and not wraps:
        raise Invalid(f"{name} is a generator and not marked wrapper=True")
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is not parameter.POSITIONAL_OR_KEYWORD:
            raise Invalid(f"{name}: argument {parameter.name!r} must be a plain parameter")
        if parameter.default is not parameter.empty:
            # some versions of pluggy never pass such an argument: a context would be lost
            raise Invalid(f"{name}: argument {parameter.name!r} must not have a default")


def _check_module(module: ModuleType) -> None:
    for attribute, _, options in _hookimpls(module):
        name = options.get("specname") or attribute
        if hasattr(ProviderSpec, name) and not options.get("wrapper"):
            raise Invalid(f"{name} at module level must be a wrapper; providers are classes")
        if name == "kms_event" and options.get("wrapper"):
            raise Invalid("kms_event only watches: it cannot be a wrapper")


def _check_provider(provider: type[Provider]) -> None:
    if not inspect.isclass(provider):
        raise Invalid(f"it registers {provider!r}, which is not a class")
    label = provider.__name__
    type_name = getattr(provider, "type_name", None)
    if not isinstance(type_name, str) or not _TYPE_NAME.fullmatch(type_name):
        raise Invalid(f"{label}.type_name must be lower-case letters, digits and hyphens")
    _check_attributes(provider, label)
    _check_hooks(provider, ProviderSpec)
    implemented = {}
    for name, function, options in _hookimpls(provider):
        if options.get("wrapper") or options.get("specname"):
            raise Invalid(f"{label}.{name} must be an implementation under its own name")
        if hasattr(ProviderSpec, name):  # else an optional hook of a newer contract
            implemented[name] = function
    for name in REQUIRED_HOOKS:
        if name not in implemented:
            raise Invalid(f"{label} has no {name} marked with @hookimpl")
    for name, function in implemented.items():
        missing = _arguments(getattr(ProviderSpec, name)) - _arguments(function) - {"instance"}
        if missing:
            raise Invalid(f"{label}.{name} must take {', '.join(sorted(missing))}")


def _check_attributes(provider: type[Provider], label: str) -> None:
    settings = getattr(provider, "settings", None)
    if not (inspect.isclass(settings) and attrs.has(settings)):
        raise Invalid(f"{label}.settings must be an attrs class")
    if "key" not in attrs.fields_dict(settings):
        raise Invalid(f"{label}.settings must have a field 'key'")
    algorithms = getattr(provider, "wrap_algs", None)
    if not isinstance(algorithms, frozenset) or not algorithms:
        raise Invalid(f"{label}.wrap_algs must be a frozenset of the numbers it writes")
    protection = getattr(provider, "protection", None)
    if not isinstance(protection, property) and protection not in PROTECTIONS:
        raise Invalid(f"{label}.protection must be one of {', '.join(PROTECTIONS)}")
    if not callable(getattr(provider, "match", None)):
        raise Invalid(f"{label} has no method match")


def _arguments(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}


def _hooks(loaded: Loaded) -> tuple[str, ...]:
    names = [name for name, _, _ in _hookimpls(loaded.module) if name != "kms_register_providers"]
    if loaded.provider is not None:
        names += [name for name, _, _ in _hookimpls(loaded.provider)]
    return tuple(names)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())
