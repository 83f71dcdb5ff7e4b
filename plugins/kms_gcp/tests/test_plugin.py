"""How the core finds and configures the plugin."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import kms_gcp
from kms_core import Kms
from kms_gcp.provider import GcpKmsProvider

if TYPE_CHECKING:
    from kms_core.testing.servers import GcpServer


def test_entry_point_leads_to_the_provider() -> None:
    """The entry point's name is the provider type."""
    (entry,) = (e for e in entry_points(group="kms_core.v1") if e.name == "gcp-kms")
    registered: list[type[Any]] = []
    entry.load().kms_register_providers(registered.append)
    assert entry.load() is kms_gcp
    assert registered == [GcpKmsProvider]
    assert GcpKmsProvider.type_name == entry.name


@pytest.mark.parametrize("purpose", ["ENCRYPT_DECRYPT", "ASYMMETRIC_DECRYPT"])
def test_configured_client_seals_and_opens(gcp: GcpServer, tmp_path: Path, purpose: str) -> None:
    """From the configuration's tables to plaintext and back."""
    file = tmp_path / "kms.toml"
    file.write_text(
        f"""
        [instances.gcp]
        provider = "gcp-kms"
        key = "{gcp.create_key(purpose=purpose)}"
        endpoint = "{gcp.endpoint}"
        insecure = true
        attempt_timeout = "5s"
        """
    )
    with Kms.from_config(file) as kms:
        sealed = kms.seal(b"message", context={"tenant": "42"})
        assert kms.open(sealed, context={"tenant": "42"}) == b"message"


def test_environment_alone_configures_an_instance(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the environment names is a key that the settings understand."""
    for name in ("KMS_AWS_KEY", "KMS_AZURE_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KMS_GCP_KEY", "europe-west1/ring/app")
    monkeypatch.setenv("GCP_PROJECT_ID", "demo-project")
    with Kms.from_env() as kms:
        assert list(kms.breakers) == ["gcp"]


def test_making_an_instance_imports_no_sdk() -> None:
    """Plugin, settings and instance are there before the SDK is."""
    code = (
        "import sys\n"
        "from kms_gcp.provider import GcpKmsProvider\n"
        "name = 'projects/demo/locations/global/keyRings/r/cryptoKeys/k'\n"
        "provider = GcpKmsProvider(GcpKmsProvider.settings(name))\n"
        "provider.match(provider.key_uri)\n"
        "print(sorted({'google', 'grpc', 'proto', 'google_crc32c', 'requests'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_protection_is_what_the_configuration_says() -> None:
    """Routing relies on it, so it is the operator's word."""
    make = GcpKmsProvider.settings
    name = "projects/demo/locations/global/keyRings/r/cryptoKeys/k"
    assert GcpKmsProvider(make(key=name)).protection == "software"
    assert GcpKmsProvider(make(key=name, hsm=True)).protection == "hsm"


def test_domain_is_the_project() -> None:
    """Whoever loses a project loses all its keys."""
    name = "projects/demo/locations/global/keyRings/r/cryptoKeys/k"
    provider = GcpKmsProvider(GcpKmsProvider.settings(key=name))
    assert provider.domain(provider.key_uri) == "gcp-kms:demo"
    assert provider.domain("gcp-kms://nonsense") == "gcp-kms"
