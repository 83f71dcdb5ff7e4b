"""The shape of a provider's class, of its hooks and of its plugin module."""

from __future__ import annotations

import builtins
import importlib
import inspect
import io
import os
import re
import socket
from collections.abc import Mapping
from typing import Any, Final, get_args

import attrs
import pluggy
import pytest

from kms_core.hookspecs import PROJECT, ProviderSpec
from kms_core.testing.checks import expect, expect_key_uri
from kms_core.testing.hooks import call, marked_hooks
from kms_core.testing.processes import modules_after_importing
from kms_core.testing.suite.declared import Declared
from kms_core.types import Protection

_REQUIRED_HOOKS: Final = frozenset({"encrypt", "decrypt", "health"})
_HOOK_OF: Final[Mapping[str, str]] = {
    "has_data_key": "generate_data_key",
    "describes": "describe_key",
    "rotates": "rotate_key",
    "has_sign": "sign",
    "has_verify": "verify",
    "has_public_key": "public_key",
}
_IO: Final = (
    (builtins, "open"),
    (io, "open"),
    (os, "open"),
    (socket.socket, "connect"),
    (socket, "getaddrinfo"),
)


class Shape(Declared):
    """Nothing here asks the service."""

    def test_type_name_is_a_lower_case_word(self, provider: Any) -> None:
        """The type name is the scheme of key URIs, so it has a scheme's letters."""
        name = type(provider).type_name
        expect(
            isinstance(name, str) and re.fullmatch(r"[a-z][a-z0-9-]*", name) is not None,
            f"type_name {name!r} is not of the form [a-z][a-z0-9-]*",
        )

    def test_settings_is_an_attrs_class_with_a_key(self, provider: Any) -> None:
        """The core builds the settings from a configuration table; ``key`` is always there."""
        kind = type(provider).settings
        expect(inspect.isclass(kind) and attrs.has(kind), f"settings {kind!r} is no attrs class")
        expect("key" in attrs.fields_dict(kind), f"{kind.__name__} has no field key")

    def test_wrap_algs_are_declared_numbers(self, provider: Any) -> None:
        """What a reader may accept is a non-empty frozenset of 16-bit numbers."""
        algs = type(provider).wrap_algs
        expect(
            isinstance(algs, frozenset)
            and bool(algs)
            and all(type(alg) is int and 0 < alg <= 0xFFFF for alg in algs),
            f"wrap_algs {algs!r} is not a frozenset of numbers from 1 to 0xFFFF",
        )

    def test_protection_is_a_known_level(self, provider: Any) -> None:
        """The protection level is one that routing understands."""
        levels = get_args(Protection)
        expect(provider.protection in levels, f"protection is none of {', '.join(levels)}")

    def test_key_uri_is_read_without_io(
        self, provider: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The configured key's URI is known, or partly known, without file or network."""
        with monkeypatch.context() as patch:
            for owner, name in _IO:
                patch.setattr(owner, name, _no_io)
            key_uri = provider.key_uri
        expect_key_uri(provider, key_uri)

    def test_domain_is_a_pure_name(self, provider: Any) -> None:
        """The failure domain of a key URI is text, and the same each time."""
        domain = getattr(provider, "domain", None)
        if domain is None:
            pytest.skip("declared: no domain() method")
        name = domain(provider.key_uri)
        expect(isinstance(name, str) and bool(name), f"domain() returned {name!r}")
        expect(domain(provider.key_uri) == name, "domain() answers differently for equal URIs")

    def test_hooks_are_those_of_the_contract(self, provider: Any) -> None:
        """Every marked method is a hook that exists, with arguments that exist."""
        manager = pluggy.PluginManager(PROJECT)
        manager.add_hookspecs(ProviderSpec)
        try:
            manager.register(provider)
            manager.check_pending()
        except pluggy.PluginValidationError as exc:
            pytest.fail(f"a hook is not of the contract: {exc}")

    def test_required_hooks_are_there(self, provider: Any) -> None:
        """A provider can wrap, unwrap and tell its health."""
        absent = _REQUIRED_HOOKS - marked_hooks(provider).keys()
        expect(not absent, f"not marked @hookimpl: {', '.join(sorted(absent))}")

    @pytest.mark.parametrize("capability", _HOOK_OF)
    def test_optional_hooks_are_declared(self, provider: Any, capability: str) -> None:
        """The test class declares the optional hooks that the provider has."""
        hook = _HOOK_OF[capability]
        present = hook in marked_hooks(provider)
        expect(
            present == getattr(self, capability),
            f"set {capability} = {present}: the provider {'has' if present else 'lacks'} {hook}",
        )

    def test_hooks_name_every_argument(self, provider: Any) -> None:
        """An argument a hook leaves out is never passed: only ``instance`` may be."""
        for name, hook in marked_hooks(provider).items():
            missing = _spec_arguments(name) - inspect.signature(hook).parameters.keys()
            expect(not missing, f"{name} does not name {', '.join(sorted(missing))}")

    def test_hook_arguments_are_plain(self, provider: Any) -> None:
        """Some versions of pluggy never pass an argument that has a default."""
        for name, hook in marked_hooks(provider).items():
            for parameter in inspect.signature(hook).parameters.values():
                expect(
                    parameter.default is parameter.empty,
                    f"{name}: {parameter.name} has a default and may never be passed; remove it",
                )
                expect(
                    parameter.kind is parameter.POSITIONAL_OR_KEYWORD,
                    f"{name}: {parameter.name} is {parameter.kind.description}; make it plain",
                )

    def test_hooks_are_plain_functions(self, provider: Any) -> None:
        """A coroutine or generator would run after the wrappers have finished."""
        for name, hook in marked_hooks(provider).items():
            odd = (
                inspect.iscoroutinefunction(hook)
                or inspect.isgeneratorfunction(hook)
                or inspect.isasyncgenfunction(hook)
            )
            expect(not odd, f"{name} is async or a generator; make it an ordinary function")

    def test_plugin_registers_the_class(self, provider: Any) -> None:
        """The plugin module hands over the class under test."""
        module = importlib.import_module(self._needs_plugin_module())
        registered: list[type[Any]] = []
        marked = "kms_register_providers" in marked_hooks(module)
        expect(marked, f"{module.__name__} has no @hookimpl kms_register_providers")
        call(module, "kms_register_providers", register=registered.append)
        expect(type(provider) in registered, f"{module.__name__} registers {registered}")

    def test_plugin_import_loads_no_sdk(self) -> None:
        """Importing the plugin costs nobody the SDK; the first call does."""
        module = self._needs_plugin_module()
        if not self.sdk_modules:
            pytest.skip("declared: sdk_modules = ()")
        loaded = modules_after_importing(module) & set(self.sdk_modules)
        expect(not loaded, f"import {module} imports {', '.join(sorted(loaded))}")

    def _needs_plugin_module(self) -> str:
        if self.plugin_module is None:
            pytest.skip("declared: plugin_module = None")
        return self.plugin_module


def _no_io(*_args: object, **_kwargs: object) -> Any:
    pytest.fail("reading key_uri opened a file or a connection")


def _spec_arguments(hook: str) -> set[str]:
    spec = getattr(ProviderSpec, hook, None)
    named = set(inspect.signature(spec).parameters) if spec is not None else set()
    return named - {"self", "instance"}
