"""The plugin module: what it registers, and what importing it costs."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points

import kms_aws
from kms_aws.provider import AwsKmsProvider


def test_registers_its_provider() -> None:
    """The module hands over exactly one provider class."""
    registered: list[type] = []
    kms_aws.kms_register_providers(registered.append)
    assert registered == [AwsKmsProvider]


def test_entry_point_is_the_provider_type() -> None:
    """The core finds the plugin under the name that configurations use."""
    (entry,) = entry_points(group="kms_core.v1", name=AwsKmsProvider.type_name)
    assert entry.load() is kms_aws


def test_making_an_instance_imports_no_sdk() -> None:
    """Plugin, settings and instance are there before the SDK is."""
    code = (
        "import sys\n"
        "from kms_aws.provider import AwsKmsProvider\n"
        "provider = AwsKmsProvider(AwsKmsProvider.settings('alias/a', 'us-east-1'))\n"
        "provider.match('aws-kms://arn:aws:kms:eu-west-1:111122223333:alias/a')\n"
        "print(sorted({'boto3', 'botocore', 'urllib3'} & set(sys.modules)))\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
