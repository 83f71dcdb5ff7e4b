"""The suite of the contract, against the strict server and against moto."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import boto3
import pytest

from kms_core import AccessDenied, InvalidCiphertext, KMSError
from kms_core.testing import ProviderConformance

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Providers, StrictKms

FOREIGN = "aws-kms://arn:aws:kms:us-east-1:999999999999:key/1234abcd-12ab-34cd-56ef-1234567890ab"


class _Aws(ProviderConformance):
    foreign_key_uri = FOREIGN
    plugin_module = "kms_aws"
    sdk_modules = ("boto3", "botocore", "urllib3")


class TestStrictKey(_Aws):
    """A key that is configured by its ARN."""

    @pytest.fixture
    def key_id(self, aws: StrictKms) -> str:
        return str(aws.add_key())

    @pytest.fixture
    def provider(self, aws: StrictKms, make: Providers, key_id: str) -> AwsKmsProvider:
        return make(aws.url, key_id)

    @pytest.fixture
    def other_key(self, aws: StrictKms, make: Providers) -> tuple[AwsKmsProvider, str]:
        arn = aws.add_key()
        return make(aws.url, arn), str(arn)


class TestStrictAlias(_Aws):
    """An alias, whose key has to be found out."""

    @pytest.fixture
    def key_id(self, aws: StrictKms) -> str:
        aws.add_key(alias="alias/app")
        return "alias/app"

    @pytest.fixture
    def provider(self, aws: StrictKms, make: Providers, key_id: str) -> AwsKmsProvider:
        return make(aws.url, key_id, region="us-east-1")

    @pytest.fixture
    def other_key(self, aws: StrictKms, make: Providers) -> tuple[AwsKmsProvider, str]:
        arn = aws.add_key()
        return make(aws.url, arn), str(arn)


class TestStrictMultiRegionKey(_Aws):
    """A multi-Region key with a replica."""

    @pytest.fixture
    def key_id(self, aws: StrictKms) -> str:
        return str(aws.add_key("us-east-1", "eu-west-1", multi_region=True))

    @pytest.fixture
    def provider(self, aws: StrictKms, make: Providers, key_id: str) -> AwsKmsProvider:
        return make(aws.url, key_id, replica_regions=("eu-west-1",))

    @pytest.fixture
    def other_key(self, aws: StrictKms, make: Providers) -> tuple[AwsKmsProvider, str]:
        arn = aws.add_key()
        return make(aws.url, arn), str(arn)


class TestMoto(_Aws):
    """The emulator that demonstrations use; what it cannot prove is declared.

    No ``other_key``: older releases ignore the key that Decrypt names.
    """

    splits_context = False  # moto joins names and values without a delimiter
    # moto takes an altered key name in the blob for another key, and denies access
    altered_raises: ClassVar[tuple[type[KMSError], ...]] = (InvalidCiphertext, AccessDenied)

    @pytest.fixture
    def key_id(self, moto_url: str) -> str:
        return create_key(moto_url)

    @pytest.fixture
    def provider(self, moto_url: str, make: Providers, key_id: str) -> AwsKmsProvider:
        return make(moto_url, key_id)


def create_key(url: str) -> str:
    """A new key in moto; its ARN."""
    client: Any = boto3.client(
        "kms",
        region_name="us-east-1",
        endpoint_url=url,
        aws_access_key_id="x",
        aws_secret_access_key="y",
    )
    try:
        return str(client.create_key()["KeyMetadata"]["Arn"])
    finally:
        client.close()
