"""What a key store's file says: its parts, the strict parser and the parser's inverse.  No I/O.

The layout is described in the README for people.  A reader accepts nothing that is not described
there, because a guess about key material costs data.
"""

from __future__ import annotations

import base64
import contextlib
import json
import re
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, Final, Literal

from attrs import field, frozen

from kms_local.key_uri import KEY_NAME, KEY_NAME_RULE, STORE_ID, VERSION

FORMAT: Final = "kms-local/1"
KEY_BYTES: Final = 32  # AES-256
SEALED_KEY_BYTES: Final = 12 + KEY_BYTES + 16  # IV, ciphertext, tag
SALT_BYTES: Final = 16
MIN_SCRYPT_N: Final = 1 << 14  # less is quick to try passwords against
MIN_SCRYPT_R: Final = 8  # what scrypt was designed for
#: 128 * n * r * p.  Bounds the memory and the time that a planted file can cost its reader.
MAX_SCRYPT_COST: Final = 256 << 20

State = Literal["enabled", "disabled"]

_TIME: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", re.ASCII)


class Damaged(Exception):
    """The file breaks the layout.  Names the place, and never what stands there."""


@frozen
class Kdf:
    """How the passphrase becomes a key: scrypt (RFC 7914)."""

    salt: bytes
    n: int = 1 << 15
    r: int = 8
    p: int = 1


@frozen
class Version:
    """One version of a key; ``material`` as it stands in the file, sealed or bare."""

    number: int
    created: datetime
    material: bytes = field(repr=False)
    state: State = "enabled"


@frozen
class Key:
    """A key: ``primary`` is the version that wraps, every enabled version unwraps."""

    primary: int
    versions: Mapping[int, Version]


@frozen
class Contents:
    """A whole key store.  ``kdf`` is there exactly when a passphrase seals the material."""

    store_id: str
    keys: Mapping[str, Key]
    kdf: Kdf | None = None


def parse(data: bytes) -> Contents:
    """Read a file's bytes; raises ``Damaged``."""
    document = _fields(_json(data), "the file", ("format", "store_id", "keys"), optional=("kdf",))
    if document["format"] != FORMAT:
        raise Damaged(f"its format is not {FORMAT!r}")
    kdf = _kdf(document["kdf"]) if "kdf" in document else None
    keys = _object(document["keys"], "keys")
    size = KEY_BYTES if kdf is None else SEALED_KEY_BYTES
    return Contents(
        store_id=_matching(document["store_id"], STORE_ID, "store_id", "16 hexadecimal digits"),
        keys={
            _matching(name, KEY_NAME, "a key's name", KEY_NAME_RULE): _key(name, value, size)
            for name, value in keys.items()
        },
        kdf=kdf,
    )


def serialise(contents: Contents) -> bytes:
    """The file's bytes; ``parse`` gives ``contents`` back."""
    document: dict[str, Any] = {"format": FORMAT, "store_id": contents.store_id}
    if contents.kdf is not None:
        document["kdf"] = _kdf_document(contents.kdf)
    document["keys"] = {name: _key_document(key) for name, key in contents.keys.items()}
    return json.dumps(document, indent=2).encode() + b"\n"


def _kdf_document(kdf: Kdf) -> dict[str, Any]:
    return {"name": "scrypt", "salt": _encoded(kdf.salt), "n": kdf.n, "r": kdf.r, "p": kdf.p}


def _key_document(key: Key) -> dict[str, Any]:
    versions = {str(number): _version_document(key.versions[number]) for number in key.versions}
    return {"primary": key.primary, "versions": versions}


def _version_document(version: Version) -> dict[str, str]:
    return {
        "created": version.created.isoformat().replace("+00:00", "Z"),
        "state": version.state,
        "material": _encoded(version.material),
    }


def _kdf(value: object) -> Kdf:
    fields = _fields(value, "kdf", ("name", "salt", "n", "r", "p"))
    if fields["name"] != "scrypt":
        raise Damaged("kdf: name is not 'scrypt'")
    n, r, p = (_integer(fields[name], f"kdf: {name}") for name in ("n", "r", "p"))
    if n < MIN_SCRYPT_N or n & (n - 1) or r < MIN_SCRYPT_R:
        raise Damaged(
            f"kdf: n must be a power of two from {MIN_SCRYPT_N}, r at least {MIN_SCRYPT_R}"
        )
    if 128 * n * r * p > MAX_SCRYPT_COST:
        raise Damaged(f"kdf: it costs more than {MAX_SCRYPT_COST >> 20} MiB to evaluate")
    return Kdf(_decoded(fields["salt"], SALT_BYTES, "kdf: salt"), n, r, p)


def _key(name: str, value: object, material_size: int) -> Key:
    where = f"key {name!r}"
    fields = _fields(value, where, ("primary", "versions"))
    primary = _integer(fields["primary"], f"{where}: primary")
    versions = {}
    for number, version in _object(fields["versions"], f"{where}: versions").items():
        _matching(number, VERSION, f"{where}: a version", "a number from 1")
        versions[int(number)] = _version(int(number), version, f"{where}/{number}", material_size)
    if primary not in versions:
        raise Damaged(f"{where}: primary is none of its versions")
    return Key(primary, dict(sorted(versions.items())))


def _version(number: int, value: object, where: str, material_size: int) -> Version:
    fields = _fields(value, where, ("created", "state", "material"))
    if fields["state"] not in ("enabled", "disabled"):
        raise Damaged(f"{where}: state is neither 'enabled' nor 'disabled'")
    return Version(
        number=number,
        created=_time(fields["created"], f"{where}: created"),
        material=_decoded(fields["material"], material_size, f"{where}: material"),
        state=fields["state"],
    )


def _json(data: bytes) -> object:
    with contextlib.suppress(ValueError, RecursionError):
        return json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    # Raised out here, because json's own error carries the whole text, keys included, along.
    raise Damaged("it is not JSON")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    if len(dict(pairs)) != len(pairs):
        raise Damaged("a field is repeated")
    return dict(pairs)


def _fields(
    value: object, where: str, required: Collection[str], optional: Collection[str] = ()
) -> dict[str, Any]:
    fields = _object(value, where)
    if not set(required) <= fields.keys() <= {*required, *optional}:
        rule = ", ".join((*required, *(f"{name} if need be" for name in optional)))
        raise Damaged(f"{where} must have the fields {rule}, and no other")
    return fields


def _object(value: object, where: str) -> dict[str, Any]:
    if not isinstance(value, dict) or not value:
        raise Damaged(f"{where} is empty or not an object")
    return value


def _matching(value: object, pattern: re.Pattern[str], where: str, rule: str) -> str:
    if not isinstance(value, str) or not pattern.fullmatch(value):
        raise Damaged(f"{where} is not {rule}")
    return value


def _integer(value: object, where: str) -> int:
    if type(value) is not int or value < 1:  # bool is an int to isinstance
        raise Damaged(f"{where} is not a number from 1")
    return value


def _time(value: object, where: str) -> datetime:
    text = _matching(value, _TIME, where, "a time in UTC as 2030-12-31T23:59:59Z")
    try:
        return datetime.fromisoformat(text).astimezone(UTC)
    except ValueError as exc:
        raise Damaged(f"{where} is not a time that exists") from exc


def _decoded(value: object, size: int, where: str) -> bytes:
    data = b""
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            data = base64.b64decode(value, validate=True)
    if len(data) != size or _encoded(data) != value:
        raise Damaged(f"{where} is not {size} bytes in base64")
    return data


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")
