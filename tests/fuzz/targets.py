"""One function for each entry point that takes bytes from outside, with what it promises for all.

Each returns how the input was met: ``"value"``, or the name of a documented error.  A broken
promise is an ``AssertionError``; anything else that comes out is undocumented, and a fault too.
No fuzzer is needed to call them.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from attrs import field, frozen, validators

from kms_core import (
    Context,
    Duration,
    FormatError,
    KMSError,
    Secret,
    Settings,
    inspect,
    is_sealed,
)
from kms_core.capsules import check_put
from kms_core.config import load, structure
from kms_core.envelope import open_envelope, open_stream, split
from kms_core.header import (
    parse_capsule,
    parse_message_header,
    parse_stream_header,
)
from kms_core.inspection import armor, unarmor
from kms_core.uri import check_key_uri, encode_key_uri, provider_type
from tests.fuzz import known, mutate
from tests.fuzz.known import CONTEXT, MAX_BAD_UNWRAPS, Routed, Vault
from tests.fuzz.mutate import Grammar

VALUE: Final = "value"
CANARY: Final = "hunter2-canary"
CORPUS: Final = Path(__file__).with_name("corpus")


@frozen
class Target:
    """An entry point, how inputs for it are made, and the folders they start from."""

    check: Callable[[bytes], str]
    grammar: Grammar
    folders: tuple[str, ...]

    @property
    def name(self) -> str:
        """As on the command line."""
        return self.check.__name__.removeprefix("fuzz_")

    def seeds(self) -> dict[str, bytes]:
        """The committed inputs, by name."""
        files = [
            file for folder in self.folders for file in sorted(CORPUS.joinpath(folder).iterdir())
        ]
        return {f"{file.parent.name}/{file.name}": file.read_bytes() for file in files}


def _outcome(error: KMSError) -> str:
    """The name of an error, whose message has to be fit for a log."""
    message = str(error)
    assert message, "an error without a message"
    assert message.isprintable(), "a message of more than one line, or with control characters"
    assert CANARY not in message, "a message shows a secret"
    return type(error).__name__


def _attempt(work: Callable[[], object]) -> str:
    try:
        work()
    except KMSError as exc:
        return _outcome(exc)
    return VALUE


# --- parsers -------------------------------------------------------------------------------------


def fuzz_context(data: bytes) -> str:
    """What decodes is the one encoding of its pairs."""
    try:
        context = Context.decode(data)
    except FormatError as exc:
        return _outcome(exc)
    assert context.encoded == data
    _check_map(context)
    return VALUE


def _check_map(context: Context) -> None:
    """The pairs have this one encoding, in whatever order they were given."""
    assert Context(dict(context)).encoded == context.encoded
    assert Context(dict(reversed(list(context.items())))) == context


def fuzz_key_uri(data: bytes) -> str:
    """What is a key URI becomes the same bytes again; any text is judged."""
    texts = (data.decode("latin-1"), data.decode("utf-8", "surrogateescape"))
    for text in texts:
        outcome = _attempt(lambda text=text: encode_key_uri(text))  # type: ignore[misc]
        assert outcome in {VALUE, "FormatError"}
        provider_type(text)
    try:
        key_uri = check_key_uri(data)
    except FormatError as exc:
        return _outcome(exc)
    assert encode_key_uri(key_uri) == data
    return VALUE


def fuzz_capsule(data: bytes) -> str:
    """What parses serialises to the same bytes, but for the MAC, which needs a key."""
    try:
        capsule = parse_capsule(data)
    except FormatError as exc:
        return _outcome(exc)
    assert capsule.unsigned() == data[:-32]
    _check_map(capsule.scope)
    return VALUE


def fuzz_message_header(data: bytes) -> str:
    """What parses serialises to the same bytes."""
    try:
        header = parse_message_header(data)
    except FormatError as exc:
        return _outcome(exc)
    assert header.encode() == data[: header.size]
    _check_map(header.stored_context or Context())
    return VALUE


def fuzz_stream_header(data: bytes) -> str:
    """What parses serialises to the same bytes."""
    try:
        header, size = parse_stream_header(data)
    except FormatError as exc:
        return _outcome(exc)
    assert header.encode() == data[:size]
    _check_map(header.stored_context or Context())
    return VALUE


def fuzz_unarmor(data: bytes) -> str:
    """One text for the same bytes; and bytes of any kind survive the way there and back."""
    assert unarmor(armor(data)) == data
    text = data.decode("utf-8", "surrogateescape")
    try:
        envelope = unarmor(text)
    except FormatError as exc:
        return _outcome(exc)
    assert armor(envelope) == text
    return VALUE


def fuzz_inspect(data: bytes) -> str:
    """Bytes and their text form are described alike, and as what ``is_sealed`` says they are."""
    outcome = _attempt(lambda: inspect(data))
    assert _attempt(lambda: inspect(armor(data))) == outcome
    if outcome == VALUE:
        described = inspect(data)
        assert is_sealed(data)
        assert described.size == len(data)
        assert inspect(armor(data)) == described
    return outcome


def fuzz_is_sealed(data: bytes) -> str:
    """Yes or no for anything, alike for every form of the same bytes."""
    answer = is_sealed(data)
    assert is_sealed(bytearray(data)) is answer
    assert is_sealed(memoryview(data)) is answer
    assert is_sealed(armor(data)) is answer
    assert is_sealed(data.decode("utf-8", "surrogateescape")) in {True, False}
    return VALUE if answer else "no"


def fuzz_check_put(data: bytes) -> str:
    """Only the next generation of the same data key replaces a capsule.

    The input: key id (16), length (4) of the new capsule, the new capsule, the one to be replaced.
    """
    end = 20 + int.from_bytes(data[16:20], "big")
    key_id, new, old = data[:16], data[20:end], data[end:] or None
    try:
        check_put(key_id, new, old)
    except KMSError as exc:
        return _outcome(exc)
    assert parse_capsule(new).key_id == key_id
    if old is not None:
        assert new[12:44] == old[12:44]
        assert int.from_bytes(new[8:12], "big") == int.from_bytes(old[8:12], "big") + 1
    return VALUE


# --- opening -------------------------------------------------------------------------------------


def _parts(envelope: bytes) -> tuple[bytes, bytes]:
    """Capsule and body, the former out of the store if it is not there."""
    capsule, body = split(envelope)
    key_at = 4 if body[1] & 7 == 3 else 3
    return capsule or known.find_capsule(body[key_at : key_at + 16]), body


def _check_bill(vault: Vault | Routed, outcome: str) -> None:
    bill = vault.bill
    assert bill.opens <= 1, "a capsule was unwrapped more than once"
    assert bill.bad <= max(MAX_BAD_UNWRAPS, bill.threshold), "too many bad unwraps"
    assert bill.calls <= bill.bad + bill.threshold, "more wraps were unwrapped than needed"
    if outcome in {"FormatError", "UnsupportedVersion"}:
        assert not bill.opens, "a malformed envelope reached a key service"


def _opened(envelope: bytes, vault: Vault | Routed) -> str:
    """Open by the one-shot call; only what was sealed opens, and to what was sealed."""
    try:
        plaintext = open_envelope(envelope, CONTEXT, vault, known.find_capsule)
    except KMSError as exc:
        outcome = _outcome(exc)
    else:
        assert known.openable().get(_parts(envelope)) == plaintext, "a forgery opened"
        outcome = VALUE
    _check_bill(vault, outcome)
    return outcome


def fuzz_open_envelope(data: bytes) -> str:
    """Nothing but what was sealed opens, be the service careful or blind."""
    outcome = _opened(data, Vault(blind=False))
    blind = _opened(data, Vault(blind=True))
    assert (blind == VALUE) == (outcome == VALUE)
    return outcome


def fuzz_open_apart(data: bytes) -> str:
    """A capsule from a store is trusted no more than one that came along."""
    try:
        capsule, body = split(data)
    except KMSError as exc:
        return _outcome(exc)
    if not capsule:
        return _opened(data, Vault(blind=True))
    vault = Vault(blind=True)
    try:
        plaintext = open_envelope(body, CONTEXT, vault, lambda key_id: capsule)
    except KMSError as exc:
        outcome = _outcome(exc)
    else:
        assert known.openable().get((capsule, body)) == plaintext, "a forgery opened"
        outcome = VALUE
    _check_bill(vault, outcome)
    assert outcome == _opened(data, Vault(blind=True))
    return outcome


def fuzz_open_routed(data: bytes) -> str:
    """However many recipients it names, an envelope costs few calls."""
    return _opened(data, Routed())


class Trickle(io.RawIOBase):
    """A source that cannot seek, and hands out little at a time."""

    def __init__(self, data: bytes) -> None:
        super().__init__()
        self._source = io.BytesIO(data)

    def readable(self) -> bool:
        """It is."""
        return True

    def readinto(self, buffer: object, /) -> int:
        """Some bytes, never many."""
        view = memoryview(buffer)  # type: ignore[arg-type]
        return self._source.readinto(view[:1000])


def fuzz_open_stream(data: bytes) -> str:
    """What is released belongs at its place in what was sealed; the end is only where it was.

    A file, a buffered pipe and a raw pipe give the same.
    """
    sources = (io.BytesIO(data), Trickle(data), io.BufferedReader(Trickle(data)))
    outcomes = [_streamed(source, data) for source in sources]
    assert len(set(outcomes)) == 1, f"sources differ: {outcomes}"
    _seek(data)
    return outcomes[0]


def _streamed(source: io.IOBase, data: bytes) -> str:
    vault = Vault(blind=False)
    released = b""
    try:
        with open_stream(source, CONTEXT, vault, known.find_capsule) as stream:  # type: ignore[arg-type]
            while part := stream.read(1500):
                released += part
    except KMSError as exc:
        outcome = _outcome(exc)
        assert _is_at(released, 0), "a forged beginning was released"
    else:
        assert known.openable().get(_parts(data)) == released, "a forgery opened"
        outcome = VALUE
    _check_bill(vault, outcome)
    return outcome


def _seek(data: bytes) -> None:
    """Read from the middle to the end and then from the start, as far as it goes."""
    try:
        stream = open_stream(io.BytesIO(data), CONTEXT, Vault(blind=True), known.find_capsule)
        length = stream.seek(0, io.SEEK_END)
        for offset in (length // 2, max(0, length - 1), 0, length + 5):
            stream.seek(offset)
            assert _is_at(stream.read(700), offset), "forged bytes were released"
    except KMSError as exc:
        _outcome(exc)


def _is_at(released: bytes, offset: int) -> bool:
    return any(
        plaintext[offset : offset + len(released)] == released
        for plaintext in known.openable().values()
    )


# --- configuration -------------------------------------------------------------------------------


@frozen
class Options:
    """A field of every type that a provider's settings may have."""

    key: str
    number: int = field(default=2, validator=validators.ge(0))
    switch: bool = False
    ratio: float = 0.5
    path: Path = Path()
    wait: Duration = field(default=Duration(1.0), validator=validators.ge(Duration(0.0)))
    pin: Secret | None = None
    names: tuple[str, ...] = ()
    text: str | None = None


def fuzz_config(data: bytes) -> str:
    """A file becomes settings, or an error that names the mistake and shows no secret."""
    with TemporaryDirectory(prefix="kms-") as folder:
        file = Path(folder, "kms.toml")
        file.write_bytes(data)
        return _attempt(lambda: _build(file, {"PIN": CANARY}))


def _build(file: Path, environ: Mapping[str, str]) -> None:
    raw = load(file, environ)
    settings = Settings.from_raw(raw)
    assert settings.threshold <= settings.min_recipients
    assert settings.required <= set(settings.recipients)
    for instance in settings.instances.values():
        structure(Options, instance.options, "options", raw)


TARGETS: Final[Mapping[str, Target]] = {
    target.name: target
    for target in (
        Target(fuzz_context, mutate.MAP, ("context",)),
        Target(fuzz_key_uri, mutate.BINARY, ("key_uri",)),
        Target(fuzz_capsule, mutate.ENVELOPE, ("capsule",)),
        Target(fuzz_message_header, mutate.ENVELOPE, ("message_header",)),
        Target(fuzz_stream_header, mutate.ENVELOPE, ("stream_header",)),
        Target(fuzz_unarmor, mutate.TEXT, ("unarmor",)),
        Target(fuzz_inspect, mutate.ENVELOPE, ("envelope", "capsule")),
        Target(fuzz_is_sealed, mutate.BINARY, ("envelope", "unarmor")),
        Target(fuzz_open_envelope, mutate.ENVELOPE, ("envelope",)),
        Target(fuzz_open_apart, mutate.ENVELOPE, ("envelope",)),
        Target(fuzz_open_stream, mutate.ENVELOPE, ("envelope",)),
        Target(fuzz_open_routed, mutate.ENVELOPE, ("envelope", "crowd")),
        Target(fuzz_config, mutate.TOML, ("config",)),
        Target(fuzz_check_put, mutate.PUT, ("check_put",)),
    )
}
