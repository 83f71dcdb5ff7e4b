"""The format's vectors, read by the library and by a reader that shares no code with it."""

from __future__ import annotations

import ast
import base64
import hashlib
import io
import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest
from attrs import define, field, frozen
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
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
from tests.vectors import decoder, examples, generate
from tests.vectors.forge import CONTEXT, DEK, SCOPE, hpke_keks

VECTORS = {
    vector["name"]: vector
    for name in generate.FILES
    for vector in json.loads((generate.FOLDER / f"{name}.json").read_text())["vectors"]
}


def has_ml_kem() -> bool:
    """Whether this build of ``cryptography`` has it; the one in wheels does from 48.0 on."""
    try:
        mlkem.MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


needs_ml_kem = pytest.mark.skipif(
    not has_ml_kem(), reason="this build of cryptography lacks ML-KEM"
)


def each(*, of: Callable[[dict[str, Any]], bool] = lambda _: True) -> pytest.MarkDecorator:
    """Every vector of this kind, by name."""
    algorithms = {
        name: {kek["wrap_alg"] for kek in vector["keks"]} for name, vector in VECTORS.items()
    }
    return pytest.mark.parametrize(
        "vector",
        [
            pytest.param(
                vector,
                id=name,
                marks=[needs_ml_kem] * bool(algorithms[name] & {"0x0602", "0x0603"}),
            )
            for name, vector in VECTORS.items()
            if of(vector)
        ],
    )


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


@each()
def test_the_library_reads_every_vector(vector: Json) -> None:
    """It opens what is valid, refuses the rest by class, and unwraps no more than said."""
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
@each(of=lambda vector: "text" not in vector)
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


@each(of=lambda vector: "plaintext" in vector)
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


@each()
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


@pytest.mark.parametrize(
    "wrap_alg",
    [
        0x0601,
        pytest.param(0x0602, marks=needs_ml_kem),
        pytest.param(0x0603, marks=needs_ml_kem),
    ],
)
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


# --- the document --------------------------------------------------------------------------------

DOCUMENT = (Path(__file__).parents[1] / "docs" / "format.md").read_text()


def example(text: str) -> dict[str, str]:
    """The fields of a block: a name and hex, which may go on over indented lines."""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        name, hexadecimal = line[: -len(line.split()[-1])].strip(), line.split()[-1]
        name = name or list(fields)[-1]
        fields[name] = fields.get(name, "") + hexadecimal
    return fields


def test_the_examples_of_the_document_are_right() -> None:
    """Every byte that is printed there is what the library makes of the same input."""
    blocks = re.findall(r"^```hex ([a-z-]+)\n(.*?)^```$", DOCUMENT, re.MULTILINE | re.DOTALL)

    assert [name for name, _ in blocks] == [*dict.fromkeys(name for name, _ in blocks)]
    assert {name: example(text) for name, text in blocks} == {
        name: {field: data.hex() for field, data in fields.items()}
        for name, fields in examples.EXAMPLES.items()
    }


def test_the_examples_of_the_document_are_vectors_too() -> None:
    """The envelopes that are taken apart there can be opened here."""
    whole = b"".join(examples.capsule_and_message().values())
    assert whole.hex() == VECTORS["message"]["envelope"]

    fields = list(examples.two_of_three().items())
    k = b"".join(data for _, data in fields[[name for name, _ in fields].index("C1 11 suite k") :])
    assert VECTORS["threshold-2-of-3-all"]["envelope"].startswith(k.hex())

    envelope = bytes.fromhex(VECTORS["stream-segment-and-one"]["envelope"])
    _, body = decoder.split(envelope)
    assert hashlib.sha256(body).digest() == examples.two_segments()["SHA-256 of S"]


@pytest.mark.parametrize(
    ("kind", "start"),
    [("11", "wREB"), ("12", "wRIB"), ("1a", "wRoB"), ("13", "wRMB"), ("1b", "wRsB")],
)
def test_the_text_form_starts_as_the_document_says(kind: str, start: str) -> None:
    """Four characters tell the objects apart."""
    assert base64.urlsafe_b64encode(bytes.fromhex(f"c1{kind}01")).decode() == start
    assert f"`{start}`" in DOCUMENT
