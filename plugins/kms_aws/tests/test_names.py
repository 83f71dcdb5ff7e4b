"""ARNs, configured names and key URIs."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_aws.names import ConfiguredKey, KeyArn, is_region

UUID = "1234abcd-12ab-34cd-56ef-1234567890ab"
MRK = "mrk-1234abcd12ab34cd56ef1234567890ab"

regions = st.sampled_from(["us-east-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"])
arns = st.builds(
    KeyArn,
    st.sampled_from(["aws", "aws-cn", "aws-us-gov", "aws-iso-b", "aws-eusc"]),
    regions,
    st.from_regex(r"[0-9]{12}", fullmatch=True),
    st.from_regex(r"mrk-[0-9a-f]{32}", fullmatch=True) | st.uuids().map(str),
)


@given(arns)
def test_arn_survives_being_written(arn: KeyArn) -> None:
    """What is written can be read back, as ARN and as URI."""
    assert KeyArn.parse(str(arn)) == arn
    assert KeyArn.of_uri(arn.uri) == arn


@given(st.text() | st.text().map("arn:aws:kms:us-east-1:111122223333:key/".__add__))
def test_arn_has_one_spelling(text: str) -> None:
    """Whatever parses is written exactly as it was read."""
    arn = KeyArn.parse(text)
    assert arn is None or str(arn) == text


@pytest.mark.parametrize(
    "text",
    [
        "",
        UUID,
        f"arn:aws:kms:us-east-1:111122223333:key/{UUID}\n",
        f"arn:aws:kms:us-east-1:111122223333:key/{UUID.upper()}",
        f"arn:aws:kms:us-east-1:11112222333:key/{UUID}",
        f"arn:aws:kms:us-east-1:１１１１22223333:key/{UUID}",  # noqa: RUF001
        f"arn:aws:s3:us-east-1:111122223333:key/{UUID}",
        f"arn:evil:kms:us-east-1:111122223333:key/{UUID}",
        "arn:aws:kms:us-east-1:111122223333:alias/app",
    ],
)
def test_everything_else_is_no_key_arn(text: str) -> None:
    """Aliases, other services and near misses are not key ARNs."""
    assert KeyArn.parse(text) is None
    assert KeyArn.of_uri(f"aws-kms://{text}") is None


@given(arns, regions)
def test_only_multi_region_keys_are_seen_from_elsewhere(arn: KeyArn, region: str) -> None:
    """A replica differs in its region alone; an ordinary key has no replica."""
    seen = arn.seen_from(region)
    assert seen.region == (region if arn.key_id.startswith("mrk-") else arn.region)
    assert (seen.partition, seen.account, seen.key_id) == (arn.partition, arn.account, arn.key_id)


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        (f"arn:aws:kms:us-east-1:111122223333:key/{UUID}", None),
        ("arn:aws:kms:us-east-1:111122223333:alias/app", None),
        ("alias/app", "aws-kms://us-east-1/alias/app"),
        ("alias/team/app_1-x", "aws-kms://us-east-1/alias/team/app_1-x"),
        (UUID, f"aws-kms://us-east-1/{UUID}"),
        (MRK, f"aws-kms://us-east-1/{MRK}"),
    ],
)
def test_configured_name_is_kept_as_it_is(name: str, uri: str | None) -> None:
    """The URI of a name that is not an ARN says the region, which an ARN says itself."""
    assert ConfiguredKey.parse(name, "us-east-1").uri == (uri or f"aws-kms://{name}")


def test_alias_fits_any_key_of_its_region() -> None:
    """Nothing speaks against a key but what the name tells."""
    alias = ConfiguredKey.parse("alias/app", "us-east-1")
    assert alias.may_be(KeyArn("aws", "us-east-1", "999999999999", UUID))
    assert not alias.may_be(KeyArn("aws", "us-east-2", "999999999999", UUID))


def test_alias_arn_fits_its_account_only() -> None:
    """Partition and account of an alias ARN bind."""
    alias = ConfiguredKey.parse("arn:aws:kms:us-east-1:111122223333:alias/app", None)
    assert alias.may_be(KeyArn("aws", "us-east-1", "111122223333", UUID))
    assert not alias.may_be(KeyArn("aws", "us-east-1", "999999999999", UUID))
    assert not alias.may_be(KeyArn("aws-cn", "us-east-1", "111122223333", UUID))


def test_key_id_fits_itself_only() -> None:
    """A bare id leaves the account open and nothing else."""
    key = ConfiguredKey.parse(UUID, "us-east-1")
    assert key.may_be(KeyArn("aws", "us-east-1", "111122223333", UUID))
    assert not key.may_be(KeyArn("aws", "us-east-1", "111122223333", MRK))


@pytest.mark.parametrize(
    "name", ["us-east-1", "us-gov-west-1", "ap-southeast-12", "us-isob-east-1"]
)
def test_regions_are_recognised(name: str) -> None:
    """Names of regions have a form."""
    assert is_region(name)


@pytest.mark.parametrize(
    "name", ["", "us-east", "us-east-1.evil.example", "us-east-1\n", "US-EAST-1"]
)
def test_what_would_change_the_host_is_no_region(name: str) -> None:
    """A region becomes part of a host name, so it may hold nothing else."""
    assert not is_region(name)
