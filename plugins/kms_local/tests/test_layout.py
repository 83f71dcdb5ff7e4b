"""The file's layout: the parser takes exactly what the serialiser writes."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from kms_local.key_uri import KEY_NAME, STORE_ID, KeyRef
from kms_local.layout import (
    KEY_BYTES,
    SALT_BYTES,
    SEALED_KEY_BYTES,
    Contents,
    Damaged,
    Kdf,
    Key,
    Version,
    parse,
    serialise,
)

SECRET = bytes(range(KEY_BYTES))
SECOND = datetime(2030, 12, 31, 23, 59, 59, tzinfo=UTC)
PLAIN = Contents("0123456789abcdef", {"default": Key(1, {1: Version(1, SECOND, SECRET)})})
SEALED = Contents(
    "0123456789abcdef",
    {"default": Key(1, {1: Version(1, SECOND, bytes(SEALED_KEY_BYTES))})},
    Kdf(bytes(SALT_BYTES)),
)

store_ids = st.from_regex(STORE_ID, fullmatch=True)
names = st.from_regex(KEY_NAME, fullmatch=True)
numbers = st.integers(1, 999_999_999)


def _keys(size: int) -> st.SearchStrategy[dict[str, Key]]:
    version = st.builds(
        Version,
        number=st.just(1),
        created=st.datetimes(timezones=st.just(UTC)).map(lambda time: time.replace(microsecond=0)),
        material=st.binary(min_size=size, max_size=size),
        state=st.sampled_from(["enabled", "disabled"]),
    )
    versions = st.dictionaries(numbers, version, min_size=1, max_size=4).map(
        lambda found: {number: evolve(found[number], number=number) for number in sorted(found)}
    )
    key = versions.flatmap(
        lambda found: st.sampled_from(list(found)).map(lambda primary: Key(primary, found))
    )
    return st.dictionaries(names, key, min_size=1, max_size=4)


plain = st.builds(Contents, store_ids, _keys(KEY_BYTES), st.none())
sealed = st.builds(
    Contents,
    store_ids,
    _keys(SEALED_KEY_BYTES),
    st.builds(
        Kdf,
        st.binary(min_size=SALT_BYTES, max_size=SALT_BYTES),
        st.sampled_from([1 << 14, 1 << 15, 1 << 17]),
        st.integers(8, 9),
        st.just(1),
    ),
)


@given(plain | sealed)
def test_what_is_written_reads_back(contents: Contents) -> None:
    """Parsing undoes serialising, and serialising undoes parsing."""
    data = serialise(contents)
    assert parse(data) == contents
    assert serialise(parse(data)) == data


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_junk_is_damage(data: bytes) -> None:
    """Bytes that are no key store raise ``Damaged`` and nothing else."""
    with pytest.raises(Damaged):
        parse(data)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=5,
)
Place = tuple[str, ...]


def _places(document: dict[str, Any], above: Place = ()) -> list[Place]:
    found: list[Place] = []
    for name, value in document.items():
        found.append((*above, name))
        if isinstance(value, dict):
            found += _places(value, (*above, name))
    return found


def _edited(
    contents: Contents, place: Place, edit: Callable[[dict[str, Any], str], object]
) -> bytes:
    document = json.loads(serialise(contents))
    parent = document
    for name in place[:-1]:
        parent = parent[name]
    edit(parent, place[-1])
    return json.dumps(document).encode()


PLACES = _places(json.loads(serialise(SEALED)))


@given(st.sampled_from(PLACES), values)
def test_hostile_values_are_damage_or_valid(place: Place, value: object) -> None:
    """Whatever JSON stands in whatever place is accepted as it is written, or called damage."""
    data = _edited(SEALED, place, lambda parent, name: parent.update({name: value}))
    try:
        contents = parse(data)
    except Damaged:
        return
    assert json.loads(serialise(contents)) == json.loads(data)


@pytest.mark.parametrize("place", [place for place in PLACES if place != ("kdf",)])
def test_every_field_is_needed(place: Place) -> None:
    """Nothing has a default: a missing field is damage."""
    with pytest.raises(Damaged):
        parse(_edited(SEALED, place, lambda parent, name: parent.pop(name)))


def test_sealed_material_without_its_kdf_is_damage() -> None:
    """Material has another length when it is sealed, so the one cannot pass for the other."""
    with pytest.raises(Damaged, match="not 32 bytes"):
        parse(_edited(SEALED, ("kdf",), lambda parent, name: parent.pop(name)))


@pytest.mark.parametrize("place", [("more",), *((*place, "more") for place in PLACES)])
def test_further_fields_are_damage(place: Place) -> None:
    """A field this reader does not know may change the meaning of those it knows."""

    def add(parent: Any, name: str) -> None:
        if isinstance(parent, dict):
            parent[name] = 1
        else:
            raise Damaged

    with pytest.raises(Damaged):
        parse(_edited(SEALED, place, add))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("format",), "kms-local/2"),
        (("store_id",), "0123456789ABCDEF"),
        (("store_id",), "0123456789abcdef\n"),
        (("keys",), {}),
        (("keys", "default", "primary"), True),
        (("keys", "default", "primary"), "1"),
        (("keys", "default", "primary"), 2),
        (("keys", "default", "versions", "1", "state"), "paused"),
        (("keys", "default", "versions", "1", "created"), "2030-02-30T00:00:00Z"),
        (("keys", "default", "versions", "1", "created"), "2030-12-31 23:59:59Z"),
        (("keys", "default", "versions", "1", "created"), "2030-12-31T23:59:59+01:00"),
        (("keys", "default", "versions", "1", "created"), "\u0662030-12-31T23:59:59Z"),
        (("keys", "default", "versions", "1", "material"), base64.b64encode(SECRET[1:]).decode()),
        (
            ("keys", "default", "versions", "1", "material"),
            base64.b64encode(SECRET).decode() + "\n",
        ),
    ],
)
def test_near_misses_are_damage(place: Place, value: object) -> None:
    """One spelling per value: what is almost right is not."""
    with pytest.raises(Damaged):
        parse(_edited(PLAIN, place, lambda parent, name: parent.update({name: value})))


@pytest.mark.parametrize("number", ["0", "01", "-1", "1.0", "", "1000000000", "\u0661"])
def test_version_numbers_have_one_spelling(number: str) -> None:
    """A version is a decimal number from 1 without leading zeros."""

    def rename(versions: dict[str, Any], name: str) -> None:
        versions[number] = versions.pop(name)

    with pytest.raises(Damaged):
        parse(_edited(PLAIN, ("keys", "default", "versions", "1"), rename))


@pytest.mark.parametrize("name", ["", "-x", "a b", "a/b", "x" * 65, "a\n", "\u00e9"])
def test_key_names_are_checked(name: str) -> None:
    """A key's name goes into URIs and messages, so it is plain."""
    with pytest.raises(Damaged, match="a key's name"):
        parse(_edited(PLAIN, ("keys", "default"), lambda keys, old: keys.update({name: keys[old]})))


@pytest.mark.parametrize(
    ("costs", "why"),
    [
        ({"n": 1 << 13}, "power of two"),
        ({"n": (1 << 15) + 1}, "power of two"),
        ({"r": 1}, "r at least"),
        ({"p": 0}, "number from 1"),
        ({"n": 1 << 19}, "costs more"),
        ({"r": 1 << 20}, "costs more"),
        ({"p": 9}, "costs more"),
        ({"n": 1 << 4000}, "costs more"),
        ({"name": "pbkdf2"}, "scrypt"),
        ({"salt": ""}, "16 bytes"),
    ],
)
def test_the_cost_of_a_passphrase_is_bounded(costs: dict[str, object], why: str) -> None:
    """A planted file costs its reader neither memory nor time, nor does it weaken the key."""
    with pytest.raises(Damaged, match=why):
        parse(_edited(SEALED, ("kdf",), lambda parent, name: parent[name].update(costs)))


@pytest.mark.parametrize(
    "text",
    [
        '{"format": "kms-local/1", "format": "kms-local/1"}',
        "[" * 100_000,
        "9" * 5000,
        "NaN",
        "null",
        "\ufeff{}",
        "{}",
    ],
    ids=["repeated field", "deep", "huge number", "NaN", "null", "byte order mark", "empty"],
)
def test_odd_json_is_damage(text: str) -> None:
    """What JSON readers disagree about is refused."""
    with pytest.raises(Damaged):
        parse(text.encode())


def test_damage_never_shows_material() -> None:
    """Neither the message nor any error chained to it carries what stood in the file."""
    data = serialise(PLAIN)
    visible = base64.b64encode(SECRET)
    assert visible in data
    for cut in range(len(data) - 2):
        with pytest.raises(Damaged) as caught:
            parse(data[:cut])
        assert caught.value.__cause__ is None
        assert caught.value.__context__ is None
        assert visible.decode() not in str(caught.value)


def test_contents_never_show_material() -> None:
    """The repr of a whole store is safe to log."""
    assert repr(SECRET)[2:-1] not in repr(PLAIN)


@given(store_ids, names, st.none() | numbers)
def test_key_uris_read_back(store_id: str, key: str, version: int | None) -> None:
    """Every reference has a URI, and the URI gives it back."""
    ref = KeyRef(store_id, key, version)
    assert KeyRef.parse(ref.uri) == ref


@given(st.text(max_size=60) | st.text(max_size=60).map("local://0123456789abcdef/k".__add__))
def test_key_uris_have_one_spelling(text: str) -> None:
    """What parses is the canonical spelling already."""
    ref = KeyRef.parse(text)
    assert ref is None or ref.uri == text
