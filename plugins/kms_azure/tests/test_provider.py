"""The provider: versions, states, what is checked, and that the service does all the work."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
from attrs import evolve
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from kms_azure.answer import encoded
from kms_azure.keys import MAX_REMEMBERED
from kms_azure.provider import AzureKeyVaultProvider
from kms_azure.settings import AzureKeyVaultSettings
from kms_core import (
    Ciphertext,
    Context,
    InvalidCiphertext,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Unavailable,
    bind_context,
)
from kms_core.testing.servers import Failure
from kms_core.testing.servers.http import Request, Response

if TYPE_CHECKING:
    from kms_core.testing.servers import AzureServer
    from tests.conftest import Clock, Providers, Puppet

CONTEXT = Context({"tenant": "42"})
DATA_KEY = bytes(range(32))
VERSION = "0123456789abcdef0123456789abcdef"
PUBLIC = "https://app.vault.azure.net"


def opened(provider: AzureKeyVaultProvider, sealed: Ciphertext) -> bytes | bytearray:
    """What a wrap opens to, if the provider takes it for its own."""
    matched = provider.match(sealed.key_uri)
    assert matched is not None
    return provider.decrypt(matched, sealed, CONTEXT)


def named(key: str = "kek", **changes: Any) -> AzureKeyVaultProvider:
    """A provider that is never asked for anything."""
    return AzureKeyVaultProvider(AzureKeyVaultSettings(key, PUBLIC, **changes))


# Which keys are ours


def uri(name: str, version: str = VERSION, vault: str = "app.vault.azure.net") -> str:
    """A key URI."""
    return f"azure-keyvault://{vault}/keys/{name}/{version}"


def test_every_version_of_a_name_is_ours() -> None:
    """Old envelopes have to open."""
    provider = named()
    assert provider.key_uri == "azure-keyvault://app.vault.azure.net/keys/kek"
    assert provider.match(provider.key_uri) == "kek"
    assert provider.match(uri("kek")) == f"kek/{VERSION}"
    assert provider.match(uri("kek", "f" * 32)) == f"kek/{'f' * 32}"


def test_a_pinned_version_is_the_only_one() -> None:
    """Whoever names a version means it."""
    provider = named(f"kek/{VERSION}")
    assert provider.key_uri == uri("kek")
    assert provider.match(uri("kek")) == f"kek/{VERSION}"
    assert provider.match(uri("kek", "f" * 32)) is None
    assert provider.match("azure-keyvault://app.vault.azure.net/keys/kek") is None


def test_retired_keys_are_ours_to_open() -> None:
    """By name with all versions, or one version of them."""
    provider = named(f"kek/{VERSION}", also_open=("kek", f"old/{VERSION}"))
    assert provider.match(uri("kek", "f" * 32)) == f"kek/{'f' * 32}"
    assert provider.match(uri("old")) == f"old/{VERSION}"
    assert provider.match(uri("old", "f" * 32)) is None


@pytest.mark.parametrize(
    "key_uri",
    [
        uri("other"),
        uri("kek", vault="other.vault.azure.net"),
        uri("kek", vault="app.vault.azure.net:8443"),
        uri("KEK"),
        uri("kek", VERSION[:-1]),
        f"aws-kms://{uri('kek')}",
        "",
    ],
)
def test_others_are_not(key_uri: str) -> None:
    """Foreign recipients are somebody else's."""
    assert named().match(key_uri) is None


def test_the_vault_is_what_fails_together() -> None:
    """Of any key URI of this type, without asking anybody."""
    provider = named()
    assert provider.domain(provider.key_uri) == "azure-keyvault:app.vault.azure.net"
    assert (
        provider.domain(uri("x", vault="y.vault.azure.net")) == "azure-keyvault:y.vault.azure.net"
    )
    assert provider.domain("nonsense") == "azure-keyvault:app.vault.azure.net"


@pytest.mark.parametrize(
    ("changes", "protection"),
    [
        ({}, "software"),
        ({"hsm": True}, "hsm"),
        ({"vault_url": "https://pool.managedhsm.azure.net"}, "hsm"),
    ],
)
def test_protection_is_known_before_anybody_is_asked(
    changes: dict[str, Any], protection: str
) -> None:
    """Routing needs it."""
    settings = AzureKeyVaultSettings("kek", **{"vault_url": PUBLIC, **changes})
    assert AzureKeyVaultProvider(settings).protection == protection


@pytest.mark.parametrize("key_id", ["other", f"other/{VERSION}", "", "k_k", "https://x/keys/kek"])
@pytest.mark.parametrize("hook", ["encrypt", "decrypt", "health", "describe_key", "rotate_key"])
def test_hooks_refuse_other_keys(hook: str, key_id: str) -> None:
    """A key id that did not come from ``match`` is nothing to act on."""
    sealed = Ciphertext(bytes(256), uri("other"), VERSION, 0x0201)
    arguments: dict[str, tuple[Any, ...]] = {
        "encrypt": (DATA_KEY, CONTEXT),
        "decrypt": (sealed, CONTEXT),
    }
    with pytest.raises(InvalidRequest, match="match"):
        getattr(named(), hook)(key_id, *arguments.get(hook, ()))


@pytest.mark.parametrize("hook", ["encrypt", "rotate_key"])
def test_retired_keys_make_nothing_new(hook: str) -> None:
    """They are there to open."""
    arguments = (DATA_KEY, CONTEXT) if hook == "encrypt" else ()
    with pytest.raises(InvalidRequest, match="retired"):
        getattr(named(also_open=("old",)), hook)("old", *arguments)


def test_unwrapping_needs_a_version() -> None:
    """A blob does not say which version made it."""
    sealed = Ciphertext(bytes(256), uri("kek"), VERSION, 0x0201)
    with pytest.raises(InvalidRequest, match="version"):
        named().decrypt("kek", sealed, CONTEXT)


def test_names_are_taken_in_any_case(vault: AzureServer, make: Providers) -> None:
    """As the service takes them; envelopes have one spelling."""
    version = vault.create_key("KeK")
    provider = make(vault, "KeK")
    sealed = provider.encrypt("KeK", DATA_KEY, CONTEXT)
    assert sealed.key_uri.endswith(f"/keys/kek/{version}")
    assert provider.match(sealed.key_uri) == f"KeK/{version}"
    assert opened(provider, sealed) == DATA_KEY


def test_the_configured_identifier_is_a_key_id(vault: AzureServer, make: Providers) -> None:
    """Hooks are called with what the configuration says."""
    version = vault.create_key("kek")
    for key in (f"{vault.vault_url}/keys/kek", f"{vault.vault_url}/keys/kek/{version}"):
        provider = make(vault, key, vault_url=None)
        assert provider.encrypt(key, DATA_KEY, CONTEXT).key_version == version
        assert provider.health(key).ok


# Versions


def test_the_version_is_recorded_and_old_ones_open(
    vault: AzureServer, make: Providers, clock: Clock
) -> None:
    """A rotation elsewhere is noticed once what is known is too old."""
    first = vault.create_key("kek")
    provider = make(vault, clock=clock)
    old = provider.encrypt("kek", DATA_KEY, CONTEXT)
    second = vault.create_key("kek")
    assert provider.encrypt("kek", DATA_KEY, CONTEXT).key_version == first
    clock.seconds += 300.0
    new = provider.encrypt("kek", DATA_KEY, CONTEXT)
    assert (old.key_version, new.key_version) == (first, second)
    assert opened(provider, old) == opened(provider, new) == DATA_KEY


def test_the_version_is_asked_for_once(vault: AzureServer, make: Providers, clock: Clock) -> None:
    """After that a wrap is one request, and an unwrap always was."""
    vault.create_key("kek")
    provider = make(vault, clock=clock)
    for _ in range(3):
        opened(provider, provider.encrypt("kek", DATA_KEY, CONTEXT))
    counts = [vault.panel.count(operation) for operation in ("get", "wrapkey", "unwrapkey")]
    assert counts == [1, 3, 3]


def test_our_own_rotation_is_noticed_at_once(vault: AzureServer, make: Providers) -> None:
    """Whoever rotates means now."""
    first = vault.create_key("kek")
    provider = make(vault)
    provider.encrypt("kek", DATA_KEY, CONTEXT)
    info = provider.rotate_key("kek")
    assert info.primary_version == vault.versions("kek")[-1] != first
    assert provider.encrypt("kek", DATA_KEY, CONTEXT).key_version == info.primary_version


def test_an_exact_key_id_wraps_with_that_version(vault: AzureServer, make: Providers) -> None:
    """What ``match`` gives is good for everything."""
    first = vault.create_key("kek")
    vault.create_key("kek")
    sealed = make(vault).encrypt(f"kek/{first}", DATA_KEY, CONTEXT)
    assert sealed.key_version == first


def test_retired_keys_open(vault: AzureServer, make: Providers) -> None:
    """What another key wrapped before it was replaced."""
    vault.create_key("old")
    vault.create_key("kek")
    sealed = make(vault, "old").encrypt("old", DATA_KEY, CONTEXT)
    assert make(vault).match(sealed.key_uri) is None
    assert opened(make(vault, also_open=("old",)), sealed) == DATA_KEY


def test_what_is_remembered_is_bounded(vault: AzureServer, make: Providers) -> None:
    """Foreign signatures may name any number of versions."""
    vault.create_key("kek")
    provider = make(vault)
    known = provider._known
    real = provider._ask(provider._configured)
    known._ask = lambda _: real
    for number in range(2 * MAX_REMEMBERED):
        known.facts(evolve(provider._configured, version=f"{number:032x}"))
    assert len(known._remembered) == MAX_REMEMBERED


# States


def test_a_disabled_key_is_not_used_and_asked_about_again(
    vault: AzureServer, make: Providers
) -> None:
    """Nothing is sent to wrap; once it is enabled the next call works."""
    vault.create_key("kek", enabled=False)
    provider = make(vault)
    for asked in (1, 2):
        with pytest.raises(KeyDisabled, match="disabled"):
            provider.encrypt("kek", DATA_KEY, CONTEXT)
        assert (vault.panel.count("get"), vault.panel.count("wrapkey")) == (asked, 0)
    vault.set_enabled("kek", enabled=True)
    assert opened(provider, provider.encrypt("kek", DATA_KEY, CONTEXT)) == DATA_KEY


def test_a_version_that_is_disabled_later_is_forgotten(vault: AzureServer, make: Providers) -> None:
    """The service says so, and the call after that asks which version is current."""
    first = vault.create_key("kek")
    provider = make(vault)
    sealed = provider.encrypt("kek", DATA_KEY, CONTEXT)
    second = vault.create_key("kek")
    vault.set_enabled("kek", first, enabled=False)
    with pytest.raises(KeyDisabled, match="Azure answered KeyDisabled"):
        provider.encrypt("kek", DATA_KEY, CONTEXT)
    assert provider.encrypt("kek", DATA_KEY, CONTEXT).key_version == second
    with pytest.raises(KeyDisabled):
        opened(provider, sealed)


def test_a_deleted_key_is_not_found(vault: AzureServer, make: Providers) -> None:
    """Neither at first nor later."""
    vault.create_key("kek")
    provider = make(vault)
    sealed = provider.encrypt("kek", DATA_KEY, CONTEXT)
    vault.delete("kek")
    for ask in (
        lambda: provider.encrypt("kek", DATA_KEY, CONTEXT),
        lambda: provider.encrypt("kek", DATA_KEY, CONTEXT),
        lambda: opened(provider, sealed),
        lambda: provider.health("kek"),
    ):
        with pytest.raises(KeyNotFound):
            ask()


@pytest.mark.parametrize(
    ("dates", "word", "state"),
    [
        ({"expires": -60}, "expired", "disabled"),
        ({"not_before": 3600}, "not valid yet", "pending"),
    ],
)
def test_dates_stop_wrapping_and_not_unwrapping(
    vault: AzureServer, make: Providers, dates: dict[str, Any], word: str, state: str
) -> None:
    """What an expired key wrapped has to open."""
    now = time.time()
    moments: dict[str, Any] = {name: now + after for name, after in dates.items()}
    version = vault.create_key("kek", **moments)
    provider = make(vault)
    with pytest.raises(KeyDisabled, match=word):
        provider.encrypt("kek", DATA_KEY, CONTEXT)
    assert vault.panel.count("wrapkey") == 0
    health = provider.health("kek")
    assert not health.ok
    assert word in health.reason
    assert provider.describe_key("kek").state == state
    sealed = wrapped_elsewhere(provider, version)
    assert opened(provider, sealed) == DATA_KEY


def wrapped_elsewhere(provider: AzureKeyVaultProvider, version: str) -> Ciphertext:
    """What somebody wrapped with the public key alone."""
    public = provider.public_key(f"kek/{version}")
    key = load_der_public_key(public.der)
    assert isinstance(key, rsa.RSAPublicKey)
    oaep = padding.OAEP(padding.MGF1(hashes.SHA256()), hashes.SHA256(), None)
    blob = key.encrypt(bytes(bind_context(DATA_KEY, CONTEXT)), oaep)
    return Ciphertext(blob, public.key_uri, version, 0x0201)


def test_a_key_that_may_not_wrap_is_not_asked_to(vault: AzureServer, make: Providers) -> None:
    """Its permitted operations say so."""
    vault.create_key("kek", operations=["unwrapKey"])
    with pytest.raises(KeyDisabled, match="permit"):
        make(vault).encrypt("kek", DATA_KEY, CONTEXT)
    assert vault.panel.count("wrapkey") == 0


def test_a_software_key_is_refused_where_an_hsm_is_wanted(
    vault: AzureServer, make: Providers
) -> None:
    """Routing was told that this instance is an HSM: then it has to be one."""
    vault.create_key("kek")
    with pytest.raises(KeyDisabled, match="HSM"):
        make(vault, hsm=True).encrypt("kek", DATA_KEY, CONTEXT)
    assert vault.panel.count("wrapkey") == 0
    assert make(vault).encrypt("kek", DATA_KEY, CONTEXT).data


@pytest.mark.parametrize(
    ("kind", "algorithm"), [("EC", None), ("RSA", "A256GCM"), ("RSA", "A256KW"), ("EC", "A256KW")]
)
def test_keys_of_another_kind_do_not_wrap(
    vault: AzureServer, make: Providers, kind: str, algorithm: str | None
) -> None:
    """It is the configuration that has to change."""
    vault.create_key("kek", kind)
    with pytest.raises(InvalidRequest, match=f"{kind} and does not wrap"):
        make(vault, algorithm=algorithm).encrypt("kek", DATA_KEY, CONTEXT)


# Who does the work


@pytest.mark.parametrize(
    ("algorithm", "there", "back"),
    [
        ("A256KW", "wrapkey", "unwrapkey"),
        ("A256GCM", "encrypt", "decrypt"),
    ],
)
def test_symmetric_keys_are_the_services(
    hsm: AzureServer, make: Providers, algorithm: str, there: str, back: str
) -> None:
    """The SDK's own client would make up a key and wrap with that: every wrap is a request.

    Another process, with nothing but the wrap, opens it.
    """
    hsm.create_key("kek", "oct-HSM")
    wraps = [make(hsm, algorithm=algorithm).encrypt("kek", DATA_KEY, CONTEXT) for _ in range(3)]
    assert hsm.panel.count(there) == 3
    for sealed in wraps:
        assert opened(make(hsm), sealed) == DATA_KEY
    assert hsm.panel.count(back) == 3


def test_public_keys_are_used_by_the_service_too(vault: AzureServer, make: Providers) -> None:
    """Its audit log has every wrap."""
    vault.create_key("kek")
    provider = make(vault)
    for _ in range(3):
        provider.encrypt("kek", DATA_KEY, CONTEXT)
    assert vault.panel.count("wrapkey") == 3


def test_wraps_open_whatever_the_algorithm_is_now(hsm: AzureServer, make: Providers) -> None:
    """The number in the envelope decides how it is opened."""
    hsm.create_key("kek", "oct-HSM")
    by_kw = make(hsm, algorithm="A256KW").encrypt("kek", DATA_KEY, CONTEXT)
    by_gcm = make(hsm).encrypt("kek", DATA_KEY, CONTEXT)
    assert (by_kw.wrap_alg, by_gcm.wrap_alg) == (0x0202, 0x0203)
    assert opened(make(hsm), by_kw) == DATA_KEY
    assert opened(make(hsm, algorithm="A256KW"), by_gcm) == DATA_KEY


def test_numbers_are_not_interchangeable(hsm: AzureServer, make: Providers) -> None:
    """A number that does not belong to the blob opens nothing."""
    hsm.create_key("kek", "oct-HSM")
    provider = make(hsm)
    sealed = provider.encrypt("kek", bytes(68), CONTEXT)
    for number in (0x0201, 0x0202, 0x0101):
        with pytest.raises(InvalidCiphertext):
            opened(provider, evolve(sealed, wrap_alg=number))


@pytest.mark.parametrize("size", [0, 1, 255, 257, 1 << 20])
@pytest.mark.parametrize("number", [0x0201, 0x0202, 0x0203])
def test_blobs_of_impossible_length_are_not_sent(number: int, size: int) -> None:
    """Nobody is asked about what cannot be."""
    if number == 0x0203 and size in {255, 257}:
        pytest.skip("A256GCM has blobs of these lengths")
    sealed = Ciphertext(bytes(size), uri("kek"), VERSION, number)
    with pytest.raises(InvalidCiphertext):
        opened(named(), sealed)


@pytest.mark.parametrize("size", [1, 7, 9, 31, 33])
def test_key_wrap_takes_whole_blocks(hsm: AzureServer, make: Providers, size: int) -> None:
    """As RFC 3394 has it; the message says what to do."""
    hsm.create_key("kek", "oct-HSM")
    with pytest.raises(InvalidRequest, match="A256GCM"):
        make(hsm, algorithm="A256KW").encrypt("kek", bytes(size), CONTEXT)


def test_the_blob_of_gcm_is_that_of_the_format(hsm: AzureServer, make: Providers) -> None:
    """IV, ciphertext, tag; the context is associated data."""
    hsm.create_key("kek", "oct-HSM")
    sealed = make(hsm).encrypt("kek", DATA_KEY, CONTEXT)
    assert len(sealed.data) == 12 + 32 + 16


# Answers that are not what was asked for


def play(puppet: Puppet, spoil: Callable[[dict[str, Any]], None], *, kind: str = "RSA") -> None:
    """A vault whose cryptography is none, and whose answers are spoiled."""
    kid = f"{puppet.url}/keys/kek/{VERSION}"
    bundle = {
        "key": {
            "kid": kid,
            "kty": kind,
            "key_ops": ["wrapKey", "unwrapKey", "encrypt", "decrypt"],
            "n": encoded(b"\xff" * 256),
            "e": "AQAB",
        },
        "attributes": {"enabled": True},
    }
    sizes = {"RSA": 256, "oct-HSM": 32}

    def answer(request: Request) -> Response:
        content: dict[str, Any] = json.loads(json.dumps(bundle))
        if request.method == "POST":
            content = {
                "kid": kid,
                "value": encoded(bytes(sizes[kind])),
                "iv": encoded(bytes(12)),
                "tag": encoded(bytes(16)),
            }
        spoil(content)
        return Response(200, json.dumps(content).encode(), {"Content-Type": "application/json"})

    puppet.answer = answer


def nothing(_: dict[str, Any]) -> None:
    """Leave it as it is."""


def setting(*path: str, to: object) -> Callable[[dict[str, Any]], None]:
    """Set a field where there is one of this name; ``...`` removes it."""

    def spoil(content: dict[str, Any]) -> None:
        for name in path[:-1]:
            content = content.get(name, {})
        if path[-1] in content:
            del content[path[-1]]
            if to is not ...:
                content[path[-1]] = to

    return spoil


@pytest.mark.parametrize("kind", ["RSA", "oct-HSM"])
def test_the_played_vault_is_believed(make: Providers, puppet: Puppet, kind: str) -> None:
    """What the next tests spoil is good."""
    play(puppet, nothing, kind=kind)
    assert puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT).key_version == VERSION


@pytest.mark.parametrize("value", [..., None, "", 7, [], "a", "a=", "++++", "a b", "\u00e4"])
@pytest.mark.parametrize("name", ["value", "iv", "tag", "kid"])
def test_results_must_be_there(make: Providers, puppet: Puppet, name: str, value: object) -> None:
    """Every field of a result is looked at."""
    play(puppet, setting(name, to=value), kind="oct-HSM")
    with pytest.raises(Unavailable, match=name):
        puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT)


@pytest.mark.parametrize("name", ["value", "iv", "tag"])
@pytest.mark.parametrize("size", [1, 13, 31, 33])
def test_results_must_have_their_length(
    make: Providers, puppet: Puppet, name: str, size: int
) -> None:
    """A result that is too short would be a wrap that never opens."""
    play(puppet, setting(name, to=encoded(bytes(size))), kind="oct-HSM")
    with pytest.raises(Unavailable, match=name):
        puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT)


@pytest.mark.parametrize("size", [255, 257])
def test_rsa_blocks_must_be_as_long_as_the_key(make: Providers, puppet: Puppet, size: int) -> None:
    """The same for RSA."""
    play(puppet, setting("value", to=encoded(bytes(size))))
    with pytest.raises(Unavailable, match="value"):
        puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT)


@pytest.mark.parametrize(
    "kid",
    [
        f"/keys/other/{VERSION}",
        f"/keys/kek/{'f' * 32}",
        "/keys/kek",
        f"https://other.vault.azure.net/keys/kek/{VERSION}",
        "nonsense",
    ],
)
@pytest.mark.parametrize("where", [("kid",), ("key", "kid")])
def test_another_key_in_the_answer_is_an_outage(
    make: Providers, puppet: Puppet, where: tuple[str, ...], kid: str
) -> None:
    """What another key made would be recorded as this one's."""
    if where == ("key", "kid") and kid == f"/keys/kek/{'f' * 32}":
        pytest.skip("asking for the current version is asking for any")
    named_there = puppet.url + kid if kid.startswith("/") else kid
    play(puppet, setting(*where, to=named_there))
    with pytest.raises(Unavailable):
        puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("key",), ...),
        (("key",), []),
        (("attributes",), ...),
        (("attributes", "enabled"), ...),
        (("attributes", "enabled"), "true"),
        (("key", "kty"), "DH"),
        (("key", "kty"), None),
        (("key", "key_ops"), ...),
        (("key", "key_ops"), "wrapKey"),
        (("key", "n"), ...),
        (("key", "n"), "a b"),
    ],
)
def test_descriptions_must_be_complete(
    make: Providers, puppet: Puppet, path: tuple[str, ...], value: object
) -> None:
    """A key of which something is not known is not used."""
    play(puppet, setting(*path, to=value))
    with pytest.raises(Unavailable, match=path[-1]):
        puppet.provider(make).encrypt("kek", DATA_KEY, CONTEXT)


@pytest.mark.parametrize("name", ["exp", "nbf"])
@pytest.mark.parametrize("value", ["soon", -1, 1.5, True, 1 << 60])
def test_dates_must_be_seconds(make: Providers, puppet: Puppet, name: str, value: object) -> None:
    """Or there are none."""

    def spoil(content: dict[str, Any]) -> None:
        if "attributes" in content:
            content["attributes"][name] = value

    play(puppet, spoil)
    with pytest.raises(Unavailable, match=name):
        puppet.provider(make).health("kek")


@pytest.mark.parametrize("size", [0, 31, 32])
def test_an_opening_that_has_no_room_for_a_digest_is_refused(
    make: Providers, puppet: Puppet, size: int
) -> None:
    """Anybody can wrap with a public key, also nothing."""
    value = bytes(bind_context(b"", CONTEXT))[:size]
    play(puppet, setting("value", to=encoded(value)))
    sealed = Ciphertext(
        bytes(256), f"azure-keyvault://{puppet.url[8:]}/keys/kek/{VERSION}", VERSION, 0x0201
    )
    with pytest.raises(Unavailable if size == 0 else InvalidCiphertext):
        opened(puppet.provider(make), sealed)


# Descriptions


def test_all_versions_are_listed_oldest_first(vault: AzureServer, make: Providers) -> None:
    """Over as many pages as it takes."""
    for _ in range(30):
        vault.create_key("kek", "EC")
    info = make(vault).describe_key("kek")
    assert sorted(info.versions) == sorted(vault.versions("kek"))
    assert info.versions[-1] == info.primary_version == vault.versions("kek")[-1]
    assert vault.panel.count("versions") == 2


def test_versions_need_not_be_listed(vault: AzureServer, make: Providers) -> None:
    """Reading a key and listing its versions may be two permissions."""
    vault.create_key("kek")
    vault.panel.fail(Failure.ACCESS_DENIED, operation="versions")
    info = make(vault).describe_key("kek")
    assert info.versions == ()
    assert info.state == "enabled"


@pytest.mark.parametrize(
    ("kind", "protection"), [("RSA", "software"), ("RSA-HSM", "hsm"), ("EC-HSM", "hsm")]
)
def test_the_description_tells_who_holds_the_key(
    vault: AzureServer, make: Providers, kind: str, protection: str
) -> None:
    """By the type of the key, whatever the configuration says."""
    vault.create_key("kek", kind)
    assert make(vault).describe_key("kek").protection == protection


@pytest.mark.parametrize(
    "link",
    [
        "https://other.vault.azure.net/keys/kek/versions?x",
        "{url}/keys/other/versions?x",
        "{url}/keys/kek?x",
        "/keys/kek/versions?x",
        "",
        7,
        "{url}/keys/kek/versions?for-ever",
    ],
)
def test_a_list_of_versions_stays_with_its_key_and_ends(
    make: Providers, puppet: Puppet, link: str | int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token is not sent wherever an answer points to."""
    monkeypatch.setattr("kms_azure.description.MAX_PAGES", 3)
    play(puppet, nothing)
    bundle = puppet.answer
    there = link.format(url=puppet.url) if isinstance(link, str) else link

    def answer(request: Request) -> Response:
        if "/versions" not in request.path:
            return bundle(request)
        return Response(200, json.dumps({"value": [], "nextLink": there}).encode())

    puppet.answer = answer
    with pytest.raises(Unavailable):
        puppet.provider(make).describe_key("kek")
    assert len(puppet.requests) == (4 if "for-ever" in str(link) else 2)


def test_versions_must_be_versions(make: Providers, puppet: Puppet) -> None:
    """A list of anything else is none."""
    play(puppet, nothing)
    bundle = puppet.answer
    puppet.answer = lambda request: (
        Response(200, b'{"value": ["x"]}') if "/versions" in request.path else bundle(request)
    )
    with pytest.raises(Unavailable, match="value"):
        puppet.provider(make).describe_key("kek")


def test_nothing_else_is_raised(vault: AzureServer, make: Providers) -> None:
    """Whatever is wrong, it is one of the contract's errors."""
    provider = make(vault)
    for ask in (provider.health, provider.describe_key, provider.rotate_key, provider.public_key):
        with pytest.raises(KMSError):
            ask("kek")
