"""What the documents show is run: README's commands and snippets, and the provider they teach."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from attrs import fields_dict

from kms_core import (
    MAC_ALGORITHMS,
    SIGNATURE_ALGORITHMS,
    BreakerPolicy,
    CachePolicy,
    CallPolicy,
    EnvelopePolicy,
    InstanceConfig,
    MonitorPolicy,
    Settings,
)
from kms_core.config import Raw

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
CONTRACT = (ROOT / "docs" / "contract.md").read_text()
CONFIGURATION = (ROOT / "docs" / "configuration.md").read_text()
KMS = f"{shlex.quote(sys.executable)} -m kms_core"

pytest.importorskip("kms_local", reason="README's quick start uses the local provider")


def blocks(text: str, language: str) -> Iterator[str]:
    """The fenced blocks of one language."""
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield match[1]


def block(text: str, language: str, containing: str) -> str:
    """The one block that contains a phrase."""
    (found,) = [body for body in blocks(text, language) if containing in body]
    return found


def run(
    command: list[str], folder: Path, *paths: Path, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run in a folder, with more places to import from; the exit code must be as expected."""
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("AWS_", "KMS_"))
    }
    environment["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    environment["XDG_CONFIG_HOME"] = str(folder / "no-config-here")
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


@pytest.fixture
def folder_plugin(tmp_path: Path) -> Path:
    """The provider of the README, installed as its pyproject.toml says."""
    project = tomllib.loads(block(README, "toml", "kms-folder"))
    site = tmp_path / "site"
    info = site / f"kms_folder-{project['project']['version']}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['project']['name']}\n"
        f"Version: {project['project']['version']}\n"
    )
    ((group, entries),) = project["project"]["entry-points"].items()
    lines = [f"{name} = {value}" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines]))
    (site / "kms_folder.py").write_text(block(README, "python", '"""kms_folder.py'))
    return site


def test_the_commands_of_the_readme_do_what_it_says(tmp_path: Path) -> None:
    """From ``kms init`` to ``kms plugins``, with the output that is printed there."""
    printed = ""
    for line in block(README, "console", "kms init").splitlines():
        if not line.startswith("$ "):
            assert printed == line
            continue
        command = re.sub(r"\bkms (?=\w)", lambda _: f"{KMS} ", line.removeprefix("$ "))
        printed = run(["sh", "-c", command], tmp_path).stdout.strip()


@pytest.mark.parametrize(
    "phrase", ["kms.inspect(blob)", "kms.seal_many(", "kms.seal_file(", "kms.generate_data_key"]
)
def test_the_snippets_of_the_readme_run(phrase: str, tmp_path: Path) -> None:
    """As they stand, beside a kms.toml."""
    run([sys.executable, "-m", "kms_core", "init"], tmp_path)
    run([sys.executable, "-c", block(README, "python", phrase)], tmp_path)


def test_the_configuration_of_the_readme_is_valid(tmp_path: Path) -> None:
    """All its tables and keys exist."""
    (tmp_path / "kms.toml").write_text(block(README, "toml", "[instances.aws-east]"))
    code = "from kms_core import Kms; print(*Kms.from_config('kms.toml').breakers)"
    assert run([sys.executable, "-c", code], tmp_path).stdout.split() == [
        "aws-east",
        "azure",
        "gcp",
        "local",
    ]


def test_the_provider_of_the_readme_is_found_and_used(folder_plugin: Path, tmp_path: Path) -> None:
    """Found, loaded, sealed to and opened with; it has at most 60 lines."""
    assert len((folder_plugin / "kms_folder.py").read_text().splitlines()) <= 60
    keys = tmp_path / "keys"
    keys.mkdir()
    (keys / "k").write_bytes(bytes(range(32)))
    (tmp_path / "kms.toml").write_text(
        '[instances.mine]\nprovider = "folder"\npath = "keys"\nkey = "k"\n'
    )
    kms = [sys.executable, "-m", "kms_core"]
    listed = run([*kms, "plugins", "--json"], tmp_path, folder_plugin).stdout
    assert re.search(r'"name": "folder",\s+"state": "loaded"', listed)
    (tmp_path / "plain").write_bytes(b"secret")
    run([*kms, "seal", "plain", "-o", "s.kms", "--context", "tenant=42"], tmp_path, folder_plugin)
    opened = run([*kms, "open", "s.kms", "--context", "tenant=42"], tmp_path, folder_plugin)
    assert opened.stdout == "secret"
    run([*kms, "open", "s.kms", "--context", "tenant=43"], tmp_path, folder_plugin, code=4)


def test_the_provider_of_the_readme_passes_the_conformance_suite(
    folder_plugin: Path, tmp_path: Path
) -> None:
    """With the test file that the contract shows."""
    example = block(CONTRACT, "python", "ProviderConformance")
    (tmp_path / "test_folder.py").write_text(f"from kms_folder import *\n{example}")
    done = run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_folder.py"],
        tmp_path,
        folder_plugin,
    )
    assert " passed" in done.stdout


@pytest.mark.parametrize("phrase", ["this tenant is frozen", "def kms_event"])
def test_the_wrapper_and_the_observer_of_the_contract_are_accepted(
    phrase: str, tmp_path: Path
) -> None:
    """Loaded as a plugin module, they keep the contract."""
    site = tmp_path / "site"
    info = site / "example-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: example\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[kms_core.v1]\nexample = example_plugin\n")
    (site / "example_plugin.py").write_text(block(CONTRACT, "python", phrase))
    code = (
        "from kms_core.plugins import Plugins; p = Plugins(); p.check();"
        "print([i.state for i in p if i.name == 'example'])"
    )
    assert run([sys.executable, "-c", code], tmp_path, site).stdout.strip() == "['available']"


# --- settings ------------------------------------------------------------------------------------

TABLES: dict[str, type[Any]] = {
    "instances.NAME": InstanceConfig,
    "envelope": EnvelopePolicy,
    "calls": CallPolicy,
    "breaker": BreakerPolicy,
    "cache": CachePolicy,
    "monitor": MonitorPolicy,
}


def documented(name: str) -> dict[str, str]:
    """The settings of a table as docs/configuration.md has them, with the text of the default."""
    section = CONFIGURATION.partition(f"## `[{name}]`\n")[2].partition("\n## ")[0]
    table = section.partition("| key | default | meaning |\n")[2].partition("\n\n")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.+?) \|", table, re.MULTILINE))


def values(name: str) -> dict[str, Any]:
    """Those defaults of a table that are values, not descriptions."""
    found: dict[str, Any] = {}
    for key, text in documented(name).items():
        with suppress(tomllib.TOMLDecodeError):
            found |= tomllib.loads(f"{key} = {text.strip('`')}")
    return found


@pytest.mark.parametrize("name", TABLES)
def test_every_setting_is_documented_and_no_other(name: str) -> None:
    """Of the tables that the core reads; the rest of an instance's is its provider's."""
    settings = set(fields_dict(TABLES[name])) - {"options"}
    assert documented(name).keys() == settings | ({"key"} if name == "instances.NAME" else set())


def test_documented_defaults_are_the_defaults() -> None:
    """Written out in a file, they change nothing."""
    provider = {"provider": "local"}
    tables = {name: values(name) for name in TABLES if name != "instances.NAME"}
    written = {**provider, **values("instances.NAME")}
    spelt_out = Settings.from_raw(Raw({**tables, "instances": {"a": written}}, "t", ROOT))
    silent = Settings.from_raw(Raw({"instances": {"a": provider}}, "t", ROOT))
    for name in ("instances", "envelope", "calls", "breaker", "cache", "monitor"):
        assert getattr(spelt_out, name) == getattr(silent, name)
    assert all(tables.values())


@pytest.mark.parametrize("name", TABLES)
def test_settings_without_a_default_value_are_documented_so(name: str) -> None:
    """Where it says "none", there is none."""
    fields = fields_dict(TABLES[name])
    for key, text in documented(name).items():
        if text == "none":
            assert fields[key].default is None


def test_every_algorithm_is_in_the_contract() -> None:
    """Spelt out, or as an ending after the first of its family."""
    named = set()
    for row in re.findall(
        r"^\| (`(?:ECDSA|RSA|Ed25519|ML-DSA|HMAC).*?) \|", CONTRACT, re.MULTILINE
    ):
        first, *endings = re.findall(r"`([\w-]+)`", row)
        named |= {first, *(first.rpartition("-")[0] + ending for ending in endings)}
    assert named == SIGNATURE_ALGORITHMS | MAC_ALGORITHMS


@pytest.mark.parametrize("name", ["configuration", "contract", "operations", "threat-model"])
def test_links_between_the_documents_lead_somewhere(name: str) -> None:
    """Files and headings."""
    page = ROOT / "docs" / f"{name}.md"
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        linked = page.parent / path if path else page
        assert linked.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert anchor in {
                re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings
            }, target
