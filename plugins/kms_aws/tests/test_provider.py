"""The hooks and the matching of keys, against the strict server."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve

from kms_aws.names import KeyArn
from kms_core import (
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Unavailable,
)

if TYPE_CHECKING:
    from kms_aws.provider import AwsKmsProvider
    from tests.conftest import Aws, Providers

CONTEXT = Context({"tenant": "42"})
FOREIGN = KeyArn("aws", "us-east-1", "999999999999", "1234abcd-12ab-34cd-56ef-1234567890ab")


def opened(provider: AwsKmsProvider, sealed: Ciphertext) -> bytes | bytearray:
    """The plaintext, by way of ``match`` as the core goes it."""
    key_id = provider.match(sealed.key_uri)
    assert key_id is not None
    return provider.decrypt(key_id, sealed, CONTEXT)


# Wrapping and unwrapping


def test_wrap_names_the_key_that_did_it(aws: Aws, make: Providers) -> None:
    """The URI is the ARN from the answer; Encrypt does not tell the key's version."""
    arn = aws.add_key()
    provider = make(aws, arn)
    sealed = provider.encrypt(str(arn), b"data key", CONTEXT)
    assert (sealed.key_uri, sealed.wrap_alg) == (f"aws-kms://{arn}", 0x0101)
    assert sealed.key_version is None
    assert opened(provider, sealed) == b"data key"


def test_bytearray_is_wrapped_like_bytes(aws: Aws, make: Providers) -> None:
    """Wipeable memory goes in without a copy into something that is not."""
    arn = aws.add_key()
    provider = make(aws, arn)
    sealed = provider.encrypt(str(arn), bytearray(b"data key"), CONTEXT)
    assert opened(provider, sealed) == b"data key"


def test_data_key_tells_its_version(aws: Aws, make: Providers) -> None:
    """GenerateDataKey tells the key material, which is recorded as the version."""
    arn = aws.add_key()
    provider = make(aws, arn)
    data_key = provider.generate_data_key(str(arn), CONTEXT)
    assert data_key.ciphertext.key_version == provider.describe_key(str(arn)).primary_version
    assert opened(provider, data_key.ciphertext) == data_key.plaintext


def test_context_is_sent_as_encryption_context(aws: Aws, make: Providers) -> None:
    """IAM conditions and CloudTrail see the pairs; no pairs, no parameter."""
    arn = aws.add_key()
    provider = make(aws, arn)
    provider.encrypt(str(arn), b"k", CONTEXT)
    provider.encrypt(str(arn), b"k", Context())
    assert aws.requests[0].body["EncryptionContext"] == {"tenant": "42"}
    assert "EncryptionContext" not in aws.requests[1].body


@pytest.mark.parametrize("wrong", [b"", bytes(4097), "text", None, memoryview(b"k")])
def test_plaintext_that_does_not_fit_is_not_sent(aws: Aws, make: Providers, wrong: Any) -> None:
    """Length and type are checked before anything leaves the process."""
    arn = aws.add_key()
    with pytest.raises(InvalidRequest):
        make(aws, arn).encrypt(str(arn), wrong, CONTEXT)
    assert aws.requests == []


@pytest.mark.parametrize("change", [{"data": b""}, {"data": bytes(6145)}, {"wrap_alg": 0x0103}])
def test_ciphertext_that_cannot_be_ours_is_not_sent(
    aws: Aws, make: Providers, change: dict[str, Any]
) -> None:
    """Lengths and algorithms that the service never made are refused here."""
    arn = aws.add_key()
    sealed = Ciphertext(**{"data": b"x", "key_uri": arn.uri, "wrap_alg": 0x0101, **change})
    with pytest.raises(InvalidCiphertext):
        make(aws, arn).decrypt(str(arn), sealed, CONTEXT)
    assert aws.requests == []


def test_ciphertext_that_is_no_bytes_is_a_mistake(aws: Aws, make: Providers) -> None:
    """Text in place of a blob is the caller's fault, not the ciphertext's."""
    arn = aws.add_key()
    text: Any = "text"
    with pytest.raises(InvalidRequest):
        make(aws, arn).decrypt(str(arn), Ciphertext(text, arn.uri, wrap_alg=0x0101), CONTEXT)


def test_foreign_ciphertext_under_our_name_is_refused(aws: Aws, make: Providers) -> None:
    """Decrypt always names the key, so another key's blob does not open."""
    ours, theirs = aws.add_key(), aws.add_key()
    sealed = make(aws, theirs).encrypt(str(theirs), b"k", CONTEXT)
    with pytest.raises(InvalidCiphertext):
        make(aws, ours).decrypt(str(ours), sealed, CONTEXT)
    assert aws.requests[-1].body["KeyId"] == str(ours)


@pytest.mark.parametrize("hook", ["encrypt", "generate_data_key", "describe_key", "health"])
def test_keys_of_others_are_not_used(aws: Aws, make: Providers, hook: str) -> None:
    """An instance works for the keys of its configuration and no other."""
    provider = make(aws, aws.add_key())
    every: dict[str, dict[str, Any]] = {
        "encrypt": {"plaintext": b"k", "context": CONTEXT},
        "generate_data_key": {"context": CONTEXT},
    }
    for key_id in (str(FOREIGN), "alias/other", ""):
        with pytest.raises(InvalidRequest):
            getattr(provider, hook)(key_id=key_id, **every.get(hook, {}))
    assert aws.requests == []


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        ("Disabled", KeyDisabled),
        ("PendingDeletion", KeyDisabled),
        ("PendingImport", KeyDisabled),
        ("Creating", KeyDisabled),
    ],
)
def test_unusable_key_is_said_to_be_disabled(
    aws: Aws, make: Providers, state: str, kind: type[KMSError]
) -> None:
    """States that moto ignores stop wrapping and unwrapping."""
    arn = aws.add_key()
    provider = make(aws, arn)
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    aws.set_state(arn, state)
    with pytest.raises(kind):
        provider.encrypt(str(arn), b"k", CONTEXT)
    with pytest.raises(kind):
        opened(provider, sealed)


# Matching


def test_arn_matches_without_asking(aws: Aws, make: Providers) -> None:
    """A configured ARN needs no service to be recognised."""
    arn = aws.add_key()
    assert make(aws, arn).match(arn.uri) == str(arn)
    assert aws.requests == []


@pytest.mark.parametrize("named", ["key id", "alias", "alias arn"])
def test_other_names_are_resolved_once(aws: Aws, make: Providers, named: str) -> None:
    """An alias or a bare id is looked up by the first URI that may be its own, and never again."""
    arn = aws.add_key(alias="alias/app")
    name = {
        "key id": arn.key_id,
        "alias": "alias/app",
        "alias arn": f"arn:aws:kms:{arn.region}:{arn.account}:alias/app",
    }[named]
    provider = make(aws, name, region=arn.region)
    assert provider.match(arn.uri) == str(arn)
    assert provider.match(arn.uri) == str(arn)
    assert provider.match(provider.key_uri) == str(arn)
    assert aws.operations == ["DescribeKey"]


def test_another_key_of_the_region_is_not_the_alias(aws: Aws, make: Providers) -> None:
    """Once resolved, an alias is one key."""
    aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    assert provider.match(FOREIGN.uri) is None
    assert provider.match(aws.add_key().uri) is None
    assert aws.operations == ["DescribeKey"]


def test_wrapping_resolves_as_well(aws: Aws, make: Providers) -> None:
    """The answer to the first wrap tells the ARN: sealing and opening need no DescribeKey."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    sealed = provider.encrypt("alias/app", b"k", CONTEXT)
    assert sealed.key_uri == arn.uri
    assert opened(provider, sealed) == b"k"
    provider.encrypt("alias/app", b"k", CONTEXT)
    assert aws.operations == ["Encrypt", "Decrypt", "Encrypt"]
    sent = [request.body["KeyId"] for request in aws.requests]
    assert sent == ["alias/app", str(arn), str(arn)]


def test_repointed_alias_keeps_its_key(aws: Aws, make: Providers) -> None:
    """A running process wraps and unwraps with the key it began with."""
    first = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    sealed = provider.encrypt("alias/app", b"k", CONTEXT)
    second = aws.add_key(alias="alias/app")
    assert provider.encrypt("alias/app", b"k", CONTEXT).key_uri == first.uri
    assert opened(provider, sealed) == b"k"
    assert provider.match(second.uri) is None


def test_answers_for_two_keys_of_one_alias_do_not_mix(aws: Aws, make: Providers) -> None:
    """Of two first answers that disagree, the later one is an error: its wrap would be lost."""
    aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    second = aws.add_key()

    def resolved_meanwhile(answer: dict[str, Any]) -> dict[str, Any]:
        aws.alter = lambda answer: answer
        provider.health("alias/app")
        return {**answer, "KeyId": str(second)}

    aws.alter = resolved_meanwhile
    with pytest.raises(Unavailable, match="repointed"):
        provider.encrypt("alias/app", b"k", CONTEXT)


@pytest.mark.parametrize("named", ["key id", "alias", "alias arn", "arn"])
def test_cheap_mismatches_do_not_ask(aws: Aws, make: Providers, named: str) -> None:
    """Other regions, partitions, accounts and ids are told apart by the names alone."""
    arn = aws.add_key(alias="alias/app")
    name = {
        "key id": arn.key_id,
        "alias": "alias/app",
        "alias arn": f"arn:aws:kms:{arn.region}:{arn.account}:alias/app",
        "arn": str(arn),
    }[named]
    provider = make(aws, name, region=arn.region)
    foreign = [evolve(arn, region="eu-west-1").uri, "aws-kms://us-east-1/alias/other", "", "x:y"]
    if named in {"arn", "alias arn"}:
        foreign += [evolve(arn, account="999999999999").uri, evolve(arn, partition="aws-cn").uri]
    if named in {"arn", "key id"}:
        foreign += [evolve(arn, key_id=FOREIGN.key_id).uri]
    assert [uri for uri in foreign if provider.match(uri) is not None] == []
    assert aws.requests == []


def test_failed_resolution_is_reported_and_tried_again(aws: Aws, make: Providers) -> None:
    """An outage while resolving is an outage, not a foreign key."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    aws.fail_with("KMSInternalException", 500)
    with pytest.raises(Unavailable):
        provider.match(arn.uri)
    aws.fault = None
    assert provider.match(arn.uri) == str(arn)


def test_alias_that_does_not_exist_is_not_found(aws: Aws, make: Providers) -> None:
    """The service's own word about the configured name comes through."""
    provider = make(aws, "alias/app", region="us-east-1")
    with pytest.raises(KeyNotFound, match="alias/app"):
        provider.match(FOREIGN.uri)


def test_retired_key_opens_without_asking_and_never_wraps(aws: Aws, make: Providers) -> None:
    """``also_open`` is for reading: the configured key goes on doing the wrapping."""
    old, new = aws.add_key(), aws.add_key()
    sealed = make(aws, old).encrypt(str(old), b"k", CONTEXT)
    provider = make(aws, new, also_open=(str(old),))
    assert provider.match(sealed.key_uri) == str(old)
    assert opened(provider, sealed) == b"k"
    assert provider.encrypt(str(new), b"k", CONTEXT).key_uri == new.uri


# Multi-Region keys


def test_replica_opens_what_another_region_wrapped(aws: Aws, make: Providers) -> None:
    """The wrap of one region opens by the replica's ARN in the other."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True)
    replica = arn.seen_from("eu-west-1")
    sealed = make(aws, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws, replica, replica_regions=("us-east-1",))
    assert provider.match(sealed.key_uri) == str(replica)
    assert opened(provider, sealed) == b"k"
    assert (aws.requests[-1].region, aws.requests[-1].body["KeyId"]) == ("eu-west-1", str(replica))


def test_replica_alias_opens_what_another_region_wrapped(aws: Aws, make: Providers) -> None:
    """A name that is no ARN finds its replica too."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True, alias="alias/app")
    sealed = make(aws, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws, "alias/app", region="eu-west-1", replica_regions=("us-east-1",))
    assert opened(provider, sealed) == b"k"


def test_replicas_are_found_in_listed_regions_only(aws: Aws, make: Providers) -> None:
    """A region that the configuration does not list is out of reach."""
    arn = aws.add_key("us-east-1", multi_region=True)
    provider = make(aws, arn, replica_regions=("eu-west-1",))
    assert provider.match(arn.seen_from("eu-west-1").uri) == str(arn)
    assert provider.match(arn.seen_from("eu-west-2").uri) is None
    assert provider.match(evolve(arn, region="eu-west-1", account="999999999999").uri) is None


def test_echo_of_a_replica_is_accepted(aws: Aws, make: Providers) -> None:
    """For multi-Region keys everything but the region is compared, and ours is recorded."""
    arn = aws.add_key("us-east-1", multi_region=True)
    aws.alter = lambda answer: {**answer, "KeyId": str(arn.seen_from("eu-west-1"))}
    assert make(aws, arn).encrypt(str(arn), b"k", CONTEXT).key_uri == arn.uri


# Names


def test_domain_is_the_account(aws: Aws, make: Providers) -> None:
    """Who owns the account can lock us out of all its keys."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    assert provider.domain(FOREIGN.uri) == "aws-kms:999999999999"
    assert provider.domain(provider.key_uri) == "aws-kms"
    provider.match(arn.uri)
    assert provider.domain(provider.key_uri) == "aws-kms:111122223333"
    assert provider.domain("aws-kms://nonsense") == "aws-kms"


def test_domain_of_an_alias_arn_is_known_without_asking(aws: Aws, make: Providers) -> None:
    """An alias ARN tells its account."""
    provider = make(aws, "arn:aws:kms:us-east-1:111122223333:alias/app")
    assert provider.domain(provider.key_uri) == "aws-kms:111122223333"
    assert aws.requests == []


def test_threads_resolve_an_alias_to_one_key(aws: Aws, make: Providers) -> None:
    """However many threads come first, they agree."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws, "alias/app", region="us-east-1")
    start, uris = threading.Barrier(8), set()

    def work() -> None:
        start.wait(30)
        for _ in range(5):
            uris.add(provider.encrypt("alias/app", b"k", CONTEXT).key_uri)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert uris == {arn.uri}
    assert len(aws.requests) == 40
