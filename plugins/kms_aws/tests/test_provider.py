"""The hooks and the matching of keys, against the strict server."""

from __future__ import annotations

import base64
import json
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
    from tests.conftest import Providers, StrictKms

CONTEXT = Context({"tenant": "42"})
FOREIGN = KeyArn("aws", "us-east-1", "999999999999", "1234abcd-12ab-34cd-56ef-1234567890ab")


def operations(aws: StrictKms) -> list[str]:
    """What the server was asked, in order."""
    return [request.operation for request in aws.requests]


def opened(provider: AwsKmsProvider, sealed: Ciphertext) -> bytes:
    """The plaintext, by way of ``match`` as the core goes it."""
    key_id = provider.match(sealed.key_uri)
    assert key_id is not None
    return provider.decrypt(key_id, sealed, CONTEXT)


# Wrapping and unwrapping


def test_wrap_names_the_key_that_did_it(aws: StrictKms, make: Providers) -> None:
    """The URI is the ARN from the answer; Encrypt does not tell the key's version."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    sealed = provider.encrypt(str(arn), b"data key", CONTEXT)
    assert (sealed.key_uri, sealed.wrap_alg) == (f"aws-kms://{arn}", 0x0101)
    assert sealed.key_version is None
    assert opened(provider, sealed) == b"data key"


def test_bytearray_is_wrapped_like_bytes(aws: StrictKms, make: Providers) -> None:
    """Wipeable memory goes in without a copy into something that is not."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    sealed = provider.encrypt(str(arn), bytearray(b"data key"), CONTEXT)
    assert opened(provider, sealed) == b"data key"


def test_data_key_tells_its_version(aws: StrictKms, make: Providers) -> None:
    """GenerateDataKey tells the key material, which is recorded as the version."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    data_key = provider.generate_data_key(str(arn), CONTEXT)
    assert data_key.ciphertext.key_version == aws.key(arn).material_id
    assert opened(provider, data_key.ciphertext) == data_key.plaintext


def test_context_is_sent_as_encryption_context(aws: StrictKms, make: Providers) -> None:
    """IAM conditions and CloudTrail see the pairs; no pairs, no parameter."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    provider.encrypt(str(arn), b"k", CONTEXT)
    provider.encrypt(str(arn), b"k", Context())
    assert aws.requests[0].body["EncryptionContext"] == {"tenant": "42"}
    assert "EncryptionContext" not in aws.requests[1].body


@pytest.mark.parametrize("wrong", [b"", bytes(4097), "text", None, memoryview(b"k")])
def test_plaintext_that_does_not_fit_is_not_sent(
    aws: StrictKms, make: Providers, wrong: Any
) -> None:
    """Length and type are checked before anything leaves the process."""
    arn = aws.add_key()
    with pytest.raises(InvalidRequest):
        make(aws.url, arn).encrypt(str(arn), wrong, CONTEXT)
    assert aws.requests == []


@pytest.mark.parametrize("change", [{"data": b""}, {"data": bytes(6145)}, {"wrap_alg": 0x0102}])
def test_ciphertext_that_cannot_be_ours_is_not_sent(
    aws: StrictKms, make: Providers, change: dict[str, Any]
) -> None:
    """Lengths and algorithms that the service never made are refused here."""
    arn = aws.add_key()
    sealed = Ciphertext(**{"data": b"x", "key_uri": arn.uri, "wrap_alg": 0x0101, **change})
    with pytest.raises(InvalidCiphertext):
        make(aws.url, arn).decrypt(str(arn), sealed, CONTEXT)
    assert aws.requests == []


def test_ciphertext_that_is_no_bytes_is_a_mistake(aws: StrictKms, make: Providers) -> None:
    """Text in place of a blob is the caller's fault, not the ciphertext's."""
    arn = aws.add_key()
    text: Any = "text"
    with pytest.raises(InvalidRequest):
        make(aws.url, arn).decrypt(str(arn), Ciphertext(text, arn.uri, wrap_alg=0x0101), CONTEXT)


def test_foreign_ciphertext_under_our_name_is_refused(aws: StrictKms, make: Providers) -> None:
    """Decrypt always names the key, so another key's blob does not open."""
    ours, theirs = aws.add_key(), aws.add_key()
    sealed = make(aws.url, theirs).encrypt(str(theirs), b"k", CONTEXT)
    with pytest.raises(InvalidCiphertext):
        make(aws.url, ours).decrypt(str(ours), sealed, CONTEXT)
    assert aws.requests[-1].body["KeyId"] == str(ours)


@pytest.mark.parametrize("hook", ["encrypt", "generate_data_key", "describe_key", "health"])
def test_keys_of_others_are_not_used(aws: StrictKms, make: Providers, hook: str) -> None:
    """An instance works for the keys of its configuration and no other."""
    provider = make(aws.url, aws.add_key())
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
    aws: StrictKms, make: Providers, state: str, kind: type[KMSError]
) -> None:
    """States that moto ignores stop wrapping and unwrapping."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    aws.key(arn).state = state
    with pytest.raises(kind):
        provider.encrypt(str(arn), b"k", CONTEXT)
    with pytest.raises(kind):
        opened(provider, sealed)


# Matching


def test_arn_matches_without_asking(aws: StrictKms, make: Providers) -> None:
    """A configured ARN needs no service to be recognised."""
    arn = aws.add_key()
    assert make(aws.url, arn).match(arn.uri) == str(arn)
    assert aws.requests == []


@pytest.mark.parametrize("named", ["key id", "alias", "alias arn"])
def test_other_names_are_resolved_once(aws: StrictKms, make: Providers, named: str) -> None:
    """An alias or a bare id is looked up by the first URI that may be its own, and never again."""
    arn = aws.add_key(alias="alias/app")
    name = {
        "key id": arn.key_id,
        "alias": "alias/app",
        "alias arn": f"arn:aws:kms:{arn.region}:{arn.account}:alias/app",
    }[named]
    provider = make(aws.url, name, region=arn.region)
    assert provider.match(arn.uri) == str(arn)
    assert provider.match(arn.uri) == str(arn)
    assert provider.match(provider.key_uri) == str(arn)
    assert operations(aws) == ["DescribeKey"]


def test_another_key_of_the_region_is_not_the_alias(aws: StrictKms, make: Providers) -> None:
    """Once resolved, an alias is one key."""
    aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    assert provider.match(FOREIGN.uri) is None
    assert provider.match(aws.add_key().uri) is None
    assert operations(aws) == ["DescribeKey"]


def test_wrapping_resolves_as_well(aws: StrictKms, make: Providers) -> None:
    """The answer to the first wrap tells the ARN: sealing and opening need no DescribeKey."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    sealed = provider.encrypt("alias/app", b"k", CONTEXT)
    assert sealed.key_uri == arn.uri
    assert opened(provider, sealed) == b"k"
    provider.encrypt("alias/app", b"k", CONTEXT)
    assert operations(aws) == ["Encrypt", "Decrypt", "Encrypt"]
    sent = [request.body["KeyId"] for request in aws.requests]
    assert sent == ["alias/app", str(arn), str(arn)]


def test_repointed_alias_keeps_its_key(aws: StrictKms, make: Providers) -> None:
    """A running process wraps and unwraps with the key it began with."""
    first = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    sealed = provider.encrypt("alias/app", b"k", CONTEXT)
    second = aws.add_key(alias="alias/app")
    assert provider.encrypt("alias/app", b"k", CONTEXT).key_uri == first.uri
    assert opened(provider, sealed) == b"k"
    assert provider.match(second.uri) is None


def test_answers_for_two_keys_of_one_alias_do_not_mix(aws: StrictKms, make: Providers) -> None:
    """Of two first answers that disagree, the later one is an error: its wrap would be lost."""
    aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    second = aws.add_key()

    def resolved_meanwhile(answer: dict[str, Any]) -> dict[str, Any]:
        aws.alter = lambda answer: answer
        provider.health("alias/app")
        return {**answer, "KeyId": str(second)}

    aws.alter = resolved_meanwhile
    with pytest.raises(Unavailable, match="repointed"):
        provider.encrypt("alias/app", b"k", CONTEXT)


@pytest.mark.parametrize("named", ["key id", "alias", "alias arn", "arn"])
def test_cheap_mismatches_do_not_ask(aws: StrictKms, make: Providers, named: str) -> None:
    """Other regions, partitions, accounts and ids are told apart by the names alone."""
    arn = aws.add_key(alias="alias/app")
    name = {
        "key id": arn.key_id,
        "alias": "alias/app",
        "alias arn": f"arn:aws:kms:{arn.region}:{arn.account}:alias/app",
        "arn": str(arn),
    }[named]
    provider = make(aws.url, name, region=arn.region)
    foreign = [evolve(arn, region="eu-west-1").uri, "aws-kms://us-east-1/alias/other", "", "x:y"]
    if named in {"arn", "alias arn"}:
        foreign += [evolve(arn, account="999999999999").uri, evolve(arn, partition="aws-cn").uri]
    if named in {"arn", "key id"}:
        foreign += [evolve(arn, key_id=FOREIGN.key_id).uri]
    assert [uri for uri in foreign if provider.match(uri) is not None] == []
    assert aws.requests == []


def test_failed_resolution_is_reported_and_tried_again(aws: StrictKms, make: Providers) -> None:
    """An outage while resolving is an outage, not a foreign key."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    aws.fail_with("KMSInternalException", 500)
    with pytest.raises(Unavailable):
        provider.match(arn.uri)
    aws.fault = None
    assert provider.match(arn.uri) == str(arn)


def test_alias_that_does_not_exist_is_not_found(aws: StrictKms, make: Providers) -> None:
    """The service's own word about the configured name comes through."""
    provider = make(aws.url, "alias/app", region="us-east-1")
    with pytest.raises(KeyNotFound, match="alias/app"):
        provider.match(FOREIGN.uri)


def test_retired_key_opens_without_asking_and_never_wraps(aws: StrictKms, make: Providers) -> None:
    """``also_open`` is for reading: the configured key goes on doing the wrapping."""
    old, new = aws.add_key(), aws.add_key()
    sealed = make(aws.url, old).encrypt(str(old), b"k", CONTEXT)
    provider = make(aws.url, new, also_open=(str(old),))
    assert provider.match(sealed.key_uri) == str(old)
    assert opened(provider, sealed) == b"k"
    assert provider.encrypt(str(new), b"k", CONTEXT).key_uri == new.uri


# Multi-Region keys


def test_replica_opens_what_another_region_wrapped(aws: StrictKms, make: Providers) -> None:
    """The wrap of one region opens by the replica's ARN in the other."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True)
    replica = arn.seen_from("eu-west-1")
    sealed = make(aws.url, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws.url, replica, replica_regions=("us-east-1",))
    assert provider.match(sealed.key_uri) == str(replica)
    assert opened(provider, sealed) == b"k"
    assert (aws.requests[-1].region, aws.requests[-1].body["KeyId"]) == ("eu-west-1", str(replica))


def test_replica_alias_opens_what_another_region_wrapped(aws: StrictKms, make: Providers) -> None:
    """A name that is no ARN finds its replica too."""
    arn = aws.add_key("us-east-1", "eu-west-1", multi_region=True, alias="alias/app")
    sealed = make(aws.url, arn).encrypt(str(arn), b"k", CONTEXT)
    provider = make(aws.url, "alias/app", region="eu-west-1", replica_regions=("us-east-1",))
    assert opened(provider, sealed) == b"k"


def test_replicas_are_found_in_listed_regions_only(aws: StrictKms, make: Providers) -> None:
    """A region that the configuration does not list is out of reach."""
    arn = aws.add_key("us-east-1", multi_region=True)
    provider = make(aws.url, arn, replica_regions=("eu-west-1",))
    assert provider.match(arn.seen_from("eu-west-1").uri) == str(arn)
    assert provider.match(arn.seen_from("eu-west-2").uri) is None
    assert provider.match(evolve(arn, region="eu-west-1", account="999999999999").uri) is None


def test_echo_of_a_replica_is_accepted(aws: StrictKms, make: Providers) -> None:
    """For multi-Region keys everything but the region is compared, and ours is recorded."""
    arn = aws.add_key("us-east-1", multi_region=True)
    aws.alter = lambda answer: {**answer, "KeyId": str(arn.seen_from("eu-west-1"))}
    assert make(aws.url, arn).encrypt(str(arn), b"k", CONTEXT).key_uri == arn.uri


# Answers that cannot be trusted


def broken(**fields: Any) -> Any:
    """Change fields of an answer, or of its KeyMetadata; ``...`` takes a field out."""

    def alter(answer: dict[str, Any]) -> dict[str, Any]:
        inner = answer.get("KeyMetadata", answer)
        changed = {name: value for name, value in {**inner, **fields}.items() if value is not ...}
        return {"KeyMetadata": changed} if "KeyMetadata" in answer else changed

    return alter


def encoded(size: int) -> str:
    """Zeros as they travel."""
    return base64.b64encode(bytes(size)).decode()


MALFORMED: list[tuple[str, str, list[Any]]] = [
    ("encrypt", "CiphertextBlob", [..., "", None, 5, encoded(6145), "A", [], {}]),
    ("encrypt", "KeyId", [..., "", None, 5, FOREIGN.key_id, str(FOREIGN)]),
    ("encrypt", "EncryptionAlgorithm", ["RSAES_OAEP_SHA_256", 5, ""]),
    ("decrypt", "Plaintext", [..., "", None, 5, encoded(4097), "A"]),
    ("decrypt", "KeyId", [..., FOREIGN.key_id, str(FOREIGN)]),
    ("decrypt", "EncryptionAlgorithm", ["RSAES_OAEP_SHA_256", 5]),
    ("generate_data_key", "Plaintext", [..., encoded(31), encoded(33), "!"]),
    ("generate_data_key", "CiphertextBlob", [..., ""]),
    ("generate_data_key", "KeyId", [..., str(FOREIGN)]),
    ("generate_data_key", "KeyMaterialId", [5, "", "x" * 200, "a b"]),
    ("describe_key", "Arn", [..., "", 5, str(FOREIGN)]),
    ("describe_key", "KeyState", [..., "", 5, "a\nb"]),
    ("describe_key", "CurrentKeyMaterialId", [5]),
    ("health", "Arn", [..., str(FOREIGN)]),
    ("health", "KeyState", [..., 5]),
]


@pytest.mark.parametrize(
    ("hook", "field", "value"),
    [(hook, field, value) for hook, field, values in MALFORMED for value in values],
)
def test_malformed_success_is_an_outage(
    aws: StrictKms, make: Providers, hook: str, field: str, value: Any
) -> None:
    """A 2xx whose fields are missing, odd or about another key is no success."""
    arn = aws.add_key()
    provider = make(aws.url, arn)
    sealed = provider.encrypt(str(arn), b"k", CONTEXT)
    aws.requests.clear()
    aws.alter = broken(**{field: value})
    every: dict[str, dict[str, Any]] = {
        "encrypt": {"plaintext": b"k", "context": CONTEXT},
        "decrypt": {"ciphertext": sealed, "context": CONTEXT},
        "generate_data_key": {"context": CONTEXT},
    }
    with pytest.raises(Unavailable):
        getattr(provider, hook)(key_id=str(arn), **every.get(hook, {}))
    assert len(aws.requests) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"5",
        b'"text"',
        b"<html></html>",
        b"\xff\xfe",
        b'{"KeyId": ',
        json.dumps({"KeyMetadata": []}).encode(),
        json.dumps({"KeyMetadata": {"CreationDate": "never"}}).encode(),
        b'{"KeyMetadata": ' + b"[" * 100_000,
    ],
)
@pytest.mark.parametrize("hook", ["encrypt", "decrypt", "generate_data_key", "health"])
def test_body_that_is_no_answer_is_an_outage(
    aws: StrictKms, make: Providers, hook: str, body: bytes
) -> None:
    """Whatever a 200 carries, nothing but an outage comes of it."""
    arn = aws.add_key()
    aws.answer_with(body)
    every: dict[str, dict[str, Any]] = {
        "encrypt": {"plaintext": b"k", "context": CONTEXT},
        "decrypt": {"ciphertext": Ciphertext(b"x", arn.uri, wrap_alg=0x0101), "context": CONTEXT},
        "generate_data_key": {"context": CONTEXT},
    }
    with pytest.raises(Unavailable):
        getattr(make(aws.url, arn), hook)(key_id=str(arn), **every.get(hook, {}))
    assert len(aws.requests) == 1


def test_algorithm_may_be_left_out(aws: StrictKms, make: Providers) -> None:
    """Emulators do not echo the algorithm; an answer without one is no contradiction."""
    arn = aws.add_key()
    aws.alter = broken(EncryptionAlgorithm=...)
    provider = make(aws.url, arn)
    assert opened(provider, provider.encrypt(str(arn), b"k", CONTEXT)) == b"k"


def test_first_answer_for_an_alias_must_fit_its_name(aws: StrictKms, make: Providers) -> None:
    """What the configured name tells is checked even before the ARN is known."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    aws.alter = broken(KeyId=str(evolve(arn, region="us-west-2")))
    with pytest.raises(Unavailable):
        provider.encrypt("alias/app", b"k", CONTEXT)
    aws.alter = lambda answer: answer
    assert provider.encrypt("alias/app", b"k", CONTEXT).key_uri == arn.uri


# Health and description


@pytest.mark.parametrize(
    ("state", "described", "ok"),
    [
        ("Enabled", "enabled", True),
        ("Updating", "enabled", True),
        ("Disabled", "disabled", False),
        ("PendingDeletion", "disabled", False),
        ("PendingReplicaDeletion", "disabled", False),
        ("PendingImport", "pending", False),
        ("Creating", "pending", False),
        ("Unavailable", "unknown", False),
        ("Surprising", "unknown", False),
    ],
)
def test_key_state_is_told(
    aws: StrictKms, make: Providers, state: str, described: str, *, ok: bool
) -> None:
    """Health and description agree on the key's state, each by one request."""
    arn = aws.add_key()
    aws.key(arn).state = state
    provider = make(aws.url, arn)
    health = provider.health(str(arn))
    assert (health.ok, provider.describe_key(str(arn)).state) == (ok, described)
    assert health.reason == f"key {arn} is {state}"
    assert operations(aws) == ["DescribeKey", "DescribeKey"]


def test_asymmetric_key_is_not_well(aws: StrictKms, make: Providers) -> None:
    """A key that can never wrap is reported before somebody tries."""
    arn = aws.add_key()
    aws.key(arn).spec = "RSA_2048"
    health = make(aws.url, arn).health(str(arn))
    assert not health.ok
    assert "RSA_2048" in health.reason


@pytest.mark.parametrize(
    ("origin", "protection"),
    [("AWS_KMS", "hsm"), ("AWS_CLOUDHSM", "hsm"), ("EXTERNAL_KEY_STORE", "software")],
)
def test_description_tells_where_the_key_lives(
    aws: StrictKms, make: Providers, origin: str, protection: str
) -> None:
    """Protection, region and material come from the service."""
    arn = aws.add_key()
    aws.key(arn).origin = origin
    info = make(aws.url, arn).describe_key(str(arn))
    assert (info.key_uri, info.region, info.protection) == (arn.uri, "us-east-1", protection)
    assert info.primary_version == aws.key(arn).material_id


def test_unreachable_service_is_not_just_unwell(aws: StrictKms, make: Providers) -> None:
    """Health raises what keeps it from asking."""
    arn = aws.add_key()
    aws.fail_with("KMSInternalException", 500)
    with pytest.raises(Unavailable):
        make(aws.url, arn).health(str(arn))


# Names


def test_domain_is_the_account(aws: StrictKms, make: Providers) -> None:
    """Who owns the account can lock us out of all its keys."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
    assert provider.domain(FOREIGN.uri) == "aws-kms:999999999999"
    assert provider.domain(provider.key_uri) == "aws-kms"
    provider.match(arn.uri)
    assert provider.domain(provider.key_uri) == "aws-kms:111122223333"
    assert provider.domain("aws-kms://nonsense") == "aws-kms"


def test_domain_of_an_alias_arn_is_known_without_asking(aws: StrictKms, make: Providers) -> None:
    """An alias ARN tells its account."""
    provider = make(aws.url, "arn:aws:kms:us-east-1:111122223333:alias/app")
    assert provider.domain(provider.key_uri) == "aws-kms:111122223333"
    assert aws.requests == []


def test_threads_resolve_an_alias_to_one_key(aws: StrictKms, make: Providers) -> None:
    """However many threads come first, they agree."""
    arn = aws.add_key(alias="alias/app")
    provider = make(aws.url, "alias/app", region="us-east-1")
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
