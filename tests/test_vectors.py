"""The format's vectors, read by the library and by a reader that shares no code with it."""

from __future__ import annotations

import ast
import io
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import keywrap, serialization
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from kms_core import (
    Ciphertext,
    Context,
    FormatError,
    Health,
    IntegrityError,
    InvalidCiphertext,
    Kms,
    NoMatchingRecipient,
    hookimpl,
    unbind_context,
)
from kms_core.aead import Keys
from kms_core.capsules import CapsuleStore
from kms_core.envelope import wrap_context
from kms_core.offline import OfflineProvider, OfflineSettings
from kms_core.settings import InstanceConfig, Settings
from kms_core.types import Protection
from tests.support import PATIENT, found, providers_module
from tests.vectors import decoder, generate
from tests.vectors.forge import CONTEXT, DEK, SCOPE, hpke_keks

VECTORS = {
    vector["name"]: vector
    for name in generate.FILES
    for vector in json.loads((generate.FOLDER / f"{name}.json").read_text())["vectors"]
}
EVERY = pytest.mark.parametrize("vector", VECTORS.values(), ids=[*VECTORS])
#: What each error class of a vector is here: exactly this class or, for formats, one below it.
LIBRARY_ERRORS: Mapping[type[Exception], str] = {
    NoMatchingRecipient: "no-recipient",
    IntegrityError: "integrity",
    FormatError: "format",
}
DECODER_ERRORS: Mapping[type[Exception], str] = {
    decoder.NoRecipient: "no-recipient",
    decoder.Integrity: "integrity",
    decoder.Format: "format",
}

Json = dict[str, Any]


def outcome(work: Callable[[], bytes], errors: Mapping[type[Exception], str]) -> str:
    """The plaintext in hex, or which class of error it was."""
    try:
        return work().hex()
    except tuple(errors) as exc:
        return next(name for kind, name in errors.items() if isinstance(exc, kind))


def expected(vector: Json) -> str:
    """What ``outcome`` has to be."""
    return str(vector.get("error", vector.get("plaintext")))


# --- the library as a reader ---------------------------------------------------------------------


@define
class Held:
    """One key of a vector, and how often it was used."""

    key_uri: str
    wrap_alg: int
    secret: bytes = field(repr=False)
    unwraps: int = 0


@frozen
class HolderSettings:
    """The key that an instance holds."""

    key: str
    held: Held


class Holder:
    """A provider of one key, which unwraps and does nothing else."""

    type_name: ClassVar[str] = "local"
    settings: ClassVar[type[Any]] = HolderSettings
    wrap_algs: frozenset[int] = frozenset({0x0501, 0x0502, 0x0601, 0x0602, 0x0603})
    protection: Protection = "software"

    def __init__(self, settings: HolderSettings) -> None:
        self._held = settings.held
        self.wrap_algs = frozenset({settings.held.wrap_alg})

    @property
    def key_uri(self) -> str:
        return self._held.key_uri

    def match(self, key_uri: str) -> str | None:
        return key_uri if key_uri == self._held.key_uri else None

    @hookimpl
    def encrypt(self, key_id: str, plaintext: bytes, context: Context) -> Ciphertext:
        raise AssertionError("nothing is sealed here")

    @hookimpl
    def decrypt(self, key_id: str, ciphertext: Ciphertext, context: Context) -> bytes | bytearray:
        self._held.unwraps += 1
        try:
            return _unwrap(self._held, ciphertext.data, context)
        except (InvalidTag, keywrap.InvalidUnwrap, ValueError) as exc:
            raise InvalidCiphertext("authentication failed") from exc

    @hookimpl
    def health(self, key_id: str) -> Health:
        return Health(ok=True)


class OtherHolder(Holder):
    """The same for public keys."""

    type_name: ClassVar[str] = "hpke"


def _unwrap(held: Held, blob: bytes, context: Context) -> bytes | bytearray:
    if held.wrap_alg == 0x0501:
        return AESGCM(held.secret).decrypt(blob[:12], blob[12:], context.encoded)
    if held.wrap_alg == 0x0502:
        opened = keywrap.aes_key_unwrap_with_padding(held.secret, blob)
        return unbind_context(opened, context)
    return decoder.UNWRAP[held.wrap_alg](held.secret, blob, context.encoded)


@define
class OneCapsule:
    """A store that answers every question with the same capsule, sound or not."""

    capsule: bytes

    def get(self, key_id: bytes) -> bytes | None:
        return self.capsule

    def put(self, key_id: bytes, capsule: bytes, *, replaces: bytes | None) -> None:
        raise AssertionError("nothing is stored here")

    def key_ids(self) -> Iterator[bytes]:
        return iter(())

    def close(self) -> None:
        """Nothing is held."""


#: A client has at least one key; nothing is ever under this one.
NOBODYS: Json = {"key_uri": "local://nobody/has/1", "wrap_alg": "0x0501", "key": "00" * 32}


@contextmanager
def reader(
    keks: Sequence[Json], capsules: CapsuleStore | None = None
) -> Iterator[tuple[Kms, list[Held]]]:
    """A client that has these keys, each as an instance of its own."""
    keys = [
        Held(kek["key_uri"], int(kek["wrap_alg"], 16), bytes.fromhex(kek["key"]))
        for kek in keks or [NOBODYS]
    ]
    instances = {
        f"key-{number}": InstanceConfig(
            held.key_uri.partition(":")[0], {"key": held.key_uri, "held": held}
        )
        for number, held in enumerate(keys)
    }
    plugins = [found(kind.type_name, providers_module(kind)) for kind in (Holder, OtherHolder)]
    settings = Settings(instances=instances, calls=PATIENT)
    with Kms(settings, capsules=capsules, plugins=plugins) as kms:
        yield kms, keys


def library_input(vector: Json) -> tuple[bytes | str, CapsuleStore | None]:
    """What to open, and where its capsule is if it is elsewhere."""
    if "text" in vector:
        return str(vector["text"]), None
    if "capsule" in vector:
        return bytes.fromhex(vector["body"]), OneCapsule(bytes.fromhex(vector["capsule"]))
    return bytes.fromhex(vector["envelope"]), None


@EVERY
def test_the_library_reads_every_vector(vector: Json) -> None:
    """It opens what is valid, refuses the rest by the right class, and unwraps no more than said."""
    sealed, capsules = library_input(vector)
    with reader(vector["keks"], capsules) as (kms, keys):
        found = outcome(lambda: kms.open(sealed, vector["context"]), LIBRARY_ERRORS)

    assert found == expected(vector)
    assert sum(held.unwraps for held in keys) <= vector["max_unwraps"]


class Pipe(io.RawIOBase):
    """A source that cannot seek and gives few bytes at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._source = io.BytesIO(data)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        return self._source.readinto(memoryview(buffer)[:1000])


@pytest.mark.parametrize("source", [io.BytesIO, Pipe])
@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS.values() if "text" not in vector],
    ids=[name for name, vector in VECTORS.items() if "text" not in vector],
)
def test_the_library_reads_every_vector_from_a_stream(
    vector: Json, source: Callable[[bytes], Any]
) -> None:
    """The same, in bounded memory and whether or not the source can seek."""
    sealed, capsules = library_input(vector)
    assert isinstance(sealed, bytes)

    def work() -> bytes:
        with kms.opening(source(sealed), vector["context"]) as stream:
            return stream.read()

    with reader(vector["keks"], capsules) as (kms, keys):
        found = outcome(work, LIBRARY_ERRORS)

    assert found == expected(vector)
    assert sum(held.unwraps for held in keys) <= vector["max_unwraps"]


@pytest.mark.parametrize(
    "vector",
    [vector for vector in VECTORS.values() if "plaintext" in vector],
    ids=[name for name, vector in VECTORS.items() if "plaintext" in vector],
)
def test_the_library_describes_what_it_opens(vector: Json) -> None:
    """Without a key it tells the key id and the context that travels in clear."""
    sealed, _ = library_input(vector)
    info = Kms.inspect(sealed)

    assert info.stored_context == vector.get("stored_context")
    scope = (
        Kms.inspect(bytes.fromhex(vector["capsule"])).scope if "capsule" in vector else info.scope
    )
    assert info.key_id == Keys(DEK, scope).key_id.hex()


# --- the second reader ---------------------------------------------------------------------------


def decode(vector: Json, keys: decoder.Keys) -> bytes:
    """Open a vector with the second reader."""
    context = vector["context"]
    if "text" in vector:
        return decoder.open_text(vector["text"], context, keys)
    if "capsule" in vector:
        capsule, body = bytes.fromhex(vector["capsule"]), bytes.fromhex(vector["body"])
        return decoder.open_detached(capsule, body, context, keys)
    return decoder.open_inline(bytes.fromhex(vector["envelope"]), context, keys)


def decoder_keys(keks: Sequence[Json]) -> decoder.Keys:
    """The keys of a vector."""
    return decoder.Keys(
        {kek["key_uri"]: (int(kek["wrap_alg"], 16), bytes.fromhex(kek["key"])) for kek in keks}
    )


@EVERY
def test_the_second_reader_reads_every_vector(vector: Json) -> None:
    """Written from the document alone, it comes to the same results."""
    keys = decoder_keys(vector["keks"])

    assert outcome(lambda: decode(vector, keys), DECODER_ERRORS) == expected(vector)
    assert keys.unwraps <= vector["max_unwraps"]


def test_the_second_reader_shares_no_code_with_the_library() -> None:
    """It imports the standard library and ``cryptography`` only."""
    tree = ast.parse(Path(decoder.__file__).read_text())
    imported = {
        name.partition(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }

    assert imported - sys.stdlib_module_names == {"cryptography"}


SIMPLE = [
    bytes.fromhex(vector["envelope"])
    for name, vector in VECTORS.items()
    if "plaintext" in vector
    and "envelope" in vector
    and vector["context"] == dict(CONTEXT)
    and [kek["key_uri"] for kek in vector["keks"]] == ["local://vectors/a/1"]
    and len(vector["envelope"]) < 4000
]
ONE_KEY = [VECTORS["message"]["keks"][0]]


@pytest.fixture(scope="module")
def client() -> Iterator[Kms]:
    """A client with the one key that opens most vectors."""
    with reader(ONE_KEY) as (kms, _):
        yield kms


@given(data=st.data())
def test_both_readers_agree_on_damaged_envelopes(client: Kms, data: st.DataObject) -> None:
    """Whatever is changed, inserted, removed or cut, they say the same about it."""
    damaged = bytearray(data.draw(st.sampled_from(SIMPLE)))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(damaged)))
        size = data.draw(st.integers(0, 4))
        damaged[at : at + size] = data.draw(st.binary(max_size=4))

    def by_library() -> bytes:
        return client.open(damaged, CONTEXT)

    def by_decoder() -> bytes:
        return decoder.open_inline(bytes(damaged), dict(CONTEXT), decoder_keys(ONE_KEY))

    assert outcome(by_library, LIBRARY_ERRORS) == outcome(by_decoder, DECODER_ERRORS)


# --- the files themselves ------------------------------------------------------------------------


@pytest.mark.parametrize("name", generate.FILES)
def test_generating_again_gives_the_same_bytes(name: str) -> None:
    """A vector changes only when the format does."""
    assert (generate.FOLDER / f"{name}.json").read_text() == generate.content(name)


def test_no_file_and_no_vector_is_forgotten() -> None:
    """Every file is read here, and every vector has a name of its own."""
    vectors = [
        vector
        for path in generate.FOLDER.iterdir()
        for vector in json.loads(path.read_text())["vectors"]
    ]

    assert {path.stem for path in generate.FOLDER.iterdir()} == set(generate.FILES)
    assert len(vectors) == len(VECTORS)
    assert {vector.get("error") for vector in vectors} == {None, *LIBRARY_ERRORS.values()}


def test_nothing_is_unwrapped_for_what_is_malformed() -> None:
    """Format errors are found without a key, and every vector of one says so."""
    malformed = [vector for vector in VECTORS.values() if vector.get("error") == "format"]

    assert malformed
    assert all(vector["max_unwraps"] == 0 for vector in malformed)


# --- public keys ---------------------------------------------------------------------------------


def private_keys(wrap_alg: int, raw: bytes) -> list[Any]:
    """The parts of a private key of the vectors."""
    if wrap_alg == 0x0601:
        return [ec.derive_private_key(int.from_bytes(raw, "big"), ec.SECP256R1())]
    if wrap_alg == 0x0602:
        scalar = int.from_bytes(raw[64:], "big")
        return [
            mlkem.MLKEM1024PrivateKey.from_seed_bytes(raw[:64]),
            ec.derive_private_key(scalar, ec.SECP384R1()),
        ]
    return [
        mlkem.MLKEM768PrivateKey.from_seed_bytes(raw[:64]),
        x25519.X25519PrivateKey.from_private_bytes(raw[64:]),
    ]


@pytest.mark.parametrize("wrap_alg", [0x0601, 0x0602, 0x0603])
def test_the_library_opens_the_wraps_for_public_keys(wrap_alg: int, tmp_path: Path) -> None:
    """Its own provider names the keys alike and unwraps what was wrapped before."""
    kek, blob = hpke_keks()[wrap_alg]
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    parts = private_keys(wrap_alg, kek.key)
    private, public = tmp_path / "private.pem", tmp_path / "public.pem"
    private.touch(mode=0o600)
    private.write_bytes(
        b"".join(
            part.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) for part in parts
        )
    )
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    public.write_bytes(b"".join(part.public_key().public_bytes(pem, spki) for part in parts))
    provider = OfflineProvider(OfflineSettings(public_key=public, private_key=private))
    provider.prepare()
    context = wrap_context(SCOPE, Keys(DEK, SCOPE).key_id, 1)

    assert provider.key_uri == kek.key_uri
    ciphertext = Ciphertext(blob, kek.key_uri, wrap_alg=wrap_alg)
    assert bytes(provider.decrypt(kek.key_uri, ciphertext, context)) == DEK
