"""The plugin as the core sees it: found, light to import, configured from a table."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import click
import pytest

import kms_local
from kms_core import ConfigError, Kms, Provider, Secret
from kms_local import KeyStore, LocalProvider, LocalSettings


def test_the_entry_point_names_the_module() -> None:
    """The core finds the provider type ``local`` here."""
    (entry,) = entry_points(group="kms_core.v1", name="local")
    assert entry.load() is kms_local


def test_the_module_registers_its_provider_and_its_commands() -> None:
    """Both hooks hand over what they promise."""
    providers: list[type[Any]] = []
    group = click.Group("local")
    kms_local.kms_register_providers(providers.append)
    kms_local.kms_register_commands(group)
    assert providers == [LocalProvider]
    assert set(group.commands) == {"keys", "add-key", "rotate", "disable", "enable"}


def test_importing_the_plugin_is_light() -> None:
    """Listing plugins, and asking for the file's name, loads neither cryptography nor click."""
    code = (
        "import sys, kms_local; print(kms_local.DEFAULT_FILE_NAME, "
        "*{'cryptography', 'click', 'kms_local.store'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert run.stdout.split() == ["kms-local.keys"]


def test_every_public_name_can_be_imported() -> None:
    """Late names resolve, and an unknown one is an ordinary AttributeError."""
    for name in kms_local.__all__:
        assert getattr(kms_local, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Nonsense'"):
        _ = kms_local.Nonsense


def test_the_provider_has_the_shape_of_the_contract(tmp_path: Path) -> None:
    """A type checker agrees that this is a provider."""
    provider: Provider = LocalProvider(LocalSettings(path=tmp_path / "keys"))
    assert provider.type_name == "local"


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"path": Path("/")}, "path"),
        ({"path": Path("a\0b")}, "path"),
        ({"path": Path("keys"), "key": "a b"}, "key"),
        ({"path": Path("keys"), "key": ""}, "key"),
        ({"path": Path("keys"), "also_open": ("fine", "a/b")}, "also_open"),
    ],
)
def test_impossible_settings_name_the_field(settings: dict[str, Any], field: str) -> None:
    """The core turns the ValueError into a ConfigError that names file and instance."""
    with pytest.raises(ValueError, match=field):
        LocalSettings(**settings)


def test_settings_never_show_the_passphrase() -> None:
    """A logged settings object holds no secret."""
    settings = LocalSettings(path=Path("keys"), passphrase=Secret("hunter2"))
    assert "hunter2" not in repr(settings)


def _configuration(tmp_path: Path, **more: str) -> Path:
    lines = {"provider": '"local"', "path": '"kms-local.keys"', **more}
    table = "\n".join(f"{name} = {value}" for name, value in lines.items())
    file = tmp_path / "kms.toml"
    file.write_text(f"[instances.here]\n{table}\n")
    return file


def test_a_configured_instance_seals_and_opens(
    tmp_path: Path, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relative path and a passphrase from the environment lead to an open envelope."""
    KeyStore.create(path, passphrase=Secret("a passphrase")).close()
    monkeypatch.setenv("LOCAL_PASSPHRASE", "a passphrase")
    file = _configuration(tmp_path, passphrase='{ env = "LOCAL_PASSPHRASE" }')
    with Kms.from_config(file) as kms:
        blob = kms.seal(b"hello", context={"tenant": "42"})
        assert kms.open(blob, context={"tenant": "42"}) == b"hello"


def test_a_wrong_setting_is_an_error_of_configuration(tmp_path: Path) -> None:
    """What the validators refuse arrives with file and instance."""
    with pytest.raises(ConfigError, match=r"kms\.toml.*here.*key.*not a key name"):
        Kms.from_config(_configuration(tmp_path, key='"no spaces"'))
