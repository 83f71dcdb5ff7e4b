"""The plugin module: what it registers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import kms_azure
from kms_azure.provider import AzureKeyVaultProvider


def test_registers_its_provider() -> None:
    """The module hands over exactly one provider class."""
    registered: list[type] = []
    kms_azure.kms_register_providers(registered.append)
    assert registered == [AzureKeyVaultProvider]


def test_entry_point_is_the_provider_type() -> None:
    """The core finds the plugin under the name that configurations use."""
    (entry,) = entry_points(group="kms_core.v1", name=AzureKeyVaultProvider.type_name)
    assert entry.load() is kms_azure


def test_making_an_instance_imports_no_sdk() -> None:
    """Plugin, settings and instance are there before the SDK is."""
    code = (
        "import sys\n"
        "from kms_azure.provider import AzureKeyVaultProvider\n"
        "provider = AzureKeyVaultProvider(\n"
        "    AzureKeyVaultProvider.settings('kek', 'https://v.vault.azure.net'))\n"
        "provider.match(provider.key_uri)\n"
        "provider.close()\n"
        "print(sorted({'azure', 'msal', 'requests', 'urllib3'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
