"""The canonical map: one encoding per value, hard limits, and no value shown."""

from __future__ import annotations

import copy
import os
import pickle
import subprocess
import sys
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kms_core.context import MAX_CONTEXT_BYTES, MAX_CONTEXT_PAIRS, Context
from kms_core.errors import FormatError, InvalidRequest

TEXT = st.text(max_size=20)
PAIRS = st.dictionaries(st.text(min_size=1, max_size=20), TEXT, max_size=12)
SURROGATES = st.characters(categories=["Cs"])


def entry(key: bytes, value: bytes) -> bytes:
    """One encoded pair, valid or not."""
    return len(key).to_bytes(2, "big") + key + len(value).to_bytes(2, "big") + value


def encoded(*entries: bytes, count: int | None = None) -> bytes:
    """A map of these entries, with a count that may lie."""
    number = len(entries) if count is None else count
    return number.to_bytes(2, "big") + b"".join(entries)


def test_the_empty_map_is_two_zero_bytes() -> None:
    """No pairs, ``None`` and an empty mapping are one and the same context."""
    assert Context().encoded == Context({}).encoded == Context(None).encoded == b"\x00\x00"


def test_the_known_answer_of_the_format() -> None:
    """A scope of one pair has the bytes that other implementations expect."""
    assert Context({"tenant": "t1"}).encoded.hex() == "0001000674656e616e7400027431"


def test_pairs_are_written_in_the_order_of_their_utf8_bytes() -> None:
    """The supplementary planes sort after the private use area, unlike in UTF-16."""
    pairs = {"\U00010000": "c", "\uffff": "b", "z": "a"}

    assert Context(pairs).encoded == encoded(
        entry(b"z", b"a"), entry(b"\xef\xbf\xbf", b"b"), entry(b"\xf0\x90\x80\x80", b"c")
    )


@given(PAIRS)
def test_what_is_encoded_decodes_to_itself(pairs: dict[str, str]) -> None:
    """A context survives the way to bytes and back."""
    context = Context(pairs)

    assert dict(Context.decode(context.encoded)) == pairs


@given(PAIRS, st.randoms(use_true_random=False))
def test_order_makes_no_difference(pairs: dict[str, str], random: Any) -> None:
    """Equal maps have equal bytes and hashes, however they were put together."""
    shuffled = list(pairs.items())
    random.shuffle(shuffled)

    assert Context(dict(shuffled)) == Context(pairs)
    assert Context(dict(shuffled)).encoded == Context(pairs).encoded
    assert hash(Context(dict(shuffled))) == hash(Context(pairs))


@given(PAIRS, PAIRS)
def test_different_maps_have_different_bytes(one: dict[str, str], other: dict[str, str]) -> None:
    """The encoding is injective."""
    assert (Context(one).encoded == Context(other).encoded) == (one == other)


@given(st.lists(st.tuples(st.binary(max_size=3), st.binary(max_size=3)), max_size=3))
def test_bytes_that_are_accepted_are_the_canonical_ones(pairs: list[tuple[bytes, bytes]]) -> None:
    """Any well-framed map decodes to something that encodes to the same bytes, or not at all."""
    data = encoded(*(entry(key, value) for key, value in pairs))
    try:
        context = Context.decode(data)
    except FormatError:
        return

    assert Context(dict(context)).encoded == context.encoded == data


@given(st.binary(max_size=64))
def test_any_bytes_decode_or_raise_a_format_error(data: bytes) -> None:
    """No input leads to another exception, and none has a second encoding."""
    try:
        context = Context.decode(data)
    except FormatError:
        return

    assert Context(dict(context)).encoded == data


@given(PAIRS)
def test_every_truncation_is_refused(pairs: dict[str, str]) -> None:
    """A map that lost its end is no map."""
    data = Context(pairs).encoded

    for size in range(len(data)):
        with pytest.raises(FormatError):
            Context.decode(data[:size])


@given(PAIRS, st.binary(min_size=1, max_size=4))
def test_appended_bytes_are_refused(pairs: dict[str, str], extra: bytes) -> None:
    """A map ends where its last pair ends."""
    with pytest.raises(FormatError):
        Context.decode(Context(pairs).encoded + extra)


MALFORMED = {
    "nothing": b"",
    "half a count": b"\x00",
    "a missing pair": encoded(count=1),
    "a pair too many": encoded(entry(b"a", b""), count=0),
    "half a key length": b"\x00\x01\x00",
    "a key that is too short": b"\x00\x01\x00\x02a",
    "no value": b"\x00\x01\x00\x01a",
    "half a value length": b"\x00\x01\x00\x01a\x00",
    "a value that is too short": b"\x00\x01\x00\x01a\x00\x02b",
    "an empty key": encoded(entry(b"", b"v")),
    "a repeated pair": encoded(entry(b"a", b"1"), entry(b"a", b"1")),
    "a repeated key": encoded(entry(b"a", b"1"), entry(b"a", b"2")),
    "keys out of order": encoded(entry(b"b", b""), entry(b"a", b"")),
    "the longer key first": encoded(entry(b"aa", b""), entry(b"a", b"")),
    "a key in Latin-1": encoded(entry(b"\xe9", b"")),
    "a value in Latin-1": encoded(entry(b"a", b"\xe9")),
    "an overlong slash": encoded(entry(b"a", b"\xc0\xaf")),
    "an overlong zero": encoded(entry(b"a", b"\xc0\x80")),
    "an encoded surrogate": encoded(entry(b"a", b"\xed\xa0\x80")),
    "a surrogate pair as CESU-8": encoded(entry(b"a", b"\xed\xa0\x80\xed\xb0\x80")),
    "a code point beyond Unicode": encoded(entry(b"a", b"\xf4\x90\x80\x80")),
    "half a character": encoded(entry(b"a", b"\xe2\x82")),
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=[*MALFORMED])
def test_malformed_maps_are_refused(data: bytes) -> None:
    """Each of them breaks one rule of the encoding."""
    with pytest.raises(FormatError):
        Context.decode(data)


def test_at_most_64_pairs() -> None:
    """The 65th pair is refused, written or read."""
    entries = [entry(b"%03d" % number, b"") for number in range(MAX_CONTEXT_PAIRS + 1)]
    pairs = {f"{number:03}": "" for number in range(MAX_CONTEXT_PAIRS + 1)}

    assert len(Context.decode(encoded(*entries[:-1]))) == 64
    with pytest.raises(FormatError, match="too many pairs"):
        Context.decode(encoded(*entries))
    with pytest.raises(InvalidRequest, match="at most 64 pairs, not 65"):
        Context(pairs)
    del pairs["000"]
    assert len(Context(pairs)) == 64


def test_at_most_8192_bytes() -> None:
    """The limit holds for the whole encoding, written or read, and is reached exactly."""
    room = MAX_CONTEXT_BYTES - len(encoded(entry(b"a", b"")))
    largest = Context({"a": "v" * room})

    assert len(largest.encoded) == 8192
    assert Context.decode(largest.encoded) == largest
    with pytest.raises(InvalidRequest, match="at most 8192 encoded bytes"):
        Context({"a": "v" * (room + 1)})
    with pytest.raises(FormatError, match="out of bounds"):
        Context.decode(encoded(entry(b"a", b"v" * (room + 1))))


@pytest.mark.parametrize("pairs", [{"k" * 70_000: ""}, {"a": "v" * 70_000}, {"a": "é" * 4096}])
def test_the_limit_counts_encoded_bytes_of_any_size(pairs: dict[str, str]) -> None:
    """Text too long for its length field, or long only in UTF-8, is refused like any other."""
    with pytest.raises(InvalidRequest, match="at most 8192 encoded bytes"):
        Context(pairs)


@given(TEXT, SURROGATES, TEXT)
def test_lone_surrogates_are_refused(before: str, surrogate: str, after: str) -> None:
    """They have no UTF-8 form, in keys as in values."""
    text = before + surrogate + after

    for pairs in ({text: "v"}, {"k": text}):
        with pytest.raises(InvalidRequest, match="lone surrogate") as caught:
            Context(pairs)
        assert caught.value.__suppress_context__  # the cause would show the text


@pytest.mark.parametrize(
    "pairs", [{1: "v"}, {"k": 1}, {"k": None}, {"k": b"v"}, {b"k": "v"}, {"k": ["v"]}]
)
def test_only_strings_are_taken(pairs: dict[Any, Any]) -> None:
    """Nothing is converted silently: two spellings of a number would be two contexts."""
    with pytest.raises(InvalidRequest, match="are str"):
        Context(pairs)


def test_an_empty_key_is_refused_and_an_empty_value_is_not() -> None:
    """A value may be empty; it differs from an absent one."""
    with pytest.raises(InvalidRequest, match="key is empty"):
        Context({"": "v"})

    assert Context({"k": ""}) != Context()


def test_text_is_not_normalised() -> None:
    """Equal means equal code points: composed and decomposed letters are two values."""
    assert Context({"name": "\u00e9"}) != Context({"name": "e\u0301"})


@pytest.mark.parametrize("text", ["\0", "a\0b", "\ufeff", "\ufffe", "\U0010ffff", "\u202e"])
def test_unusual_code_points_are_kept(text: str) -> None:
    """Zero, byte order marks, noncharacters and controls pass through unchanged."""
    context = Context({text: text})

    assert dict(Context.decode(context.encoded)) == {text: text}


def test_pairs_cannot_be_moved_between_keys_and_values() -> None:
    """Text split at another place is another context."""
    splits = [Context({"ab": "c"}), Context({"a": "bc"}), Context({"a": "b", "c": ""})]

    assert len({context.encoded for context in splits}) == 3


def test_a_context_is_a_mapping() -> None:
    """It reads like the dict it was made of and equals it."""
    context = Context({"b": "2", "a": "1"})

    assert context["a"] == "1"
    assert "c" not in context
    assert len(context) == 2
    assert sorted(context) == ["a", "b"]
    assert context == {"a": "1", "b": "2"}
    assert context == MappingProxyType({"a": "1", "b": "2"})
    assert context != {"a": "1"}
    assert context != "a1b2"
    assert {**context} == {"a": "1", "b": "2"}
    assert {context: "found"}[Context({"a": "1", "b": "2"})] == "found"


def test_later_changes_of_the_source_do_not_show() -> None:
    """What was encoded is what stays."""
    pairs = {"a": "1"}
    context = Context(pairs)
    pairs["a"] = "2"

    assert context == {"a": "1"}
    assert context == Context.decode(context.encoded)


def test_values_are_not_shown() -> None:
    """``repr`` names the keys; values may be personal data."""
    assert repr(Context({"tenant": "acme", "row": "7"})) == "Context(tenant, row)"


def test_a_copy_is_equal() -> None:
    """Copies within a process compare and hash alike."""
    context = Context({"a": "1"})

    for twin in (copy.copy(context), copy.deepcopy(context), pickle.loads(pickle.dumps(context))):  # noqa: S301  our own bytes
        assert twin == context
        assert hash(twin) == hash(context)


def test_a_context_from_another_process_hashes_like_an_equal_one() -> None:
    """Hashes of bytes differ between processes, so that a stored one is worthless elsewhere."""
    script = (
        "import pickle, sys; from kms_core import Context;"
        "sys.stdout.buffer.write(pickle.dumps(Context({'a': '1'})))"
    )
    for seed in ("1", "2"):  # one of them differs from ours
        made = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            check=True,
            env={**os.environ, "PYTHONHASHSEED": seed},
        )
        context = pickle.loads(made.stdout)  # noqa: S301  made by the line above

        assert context == Context({"a": "1"})
        assert hash(context) == hash(Context({"a": "1"}))


def test_the_canonical_bytes_cannot_be_replaced() -> None:
    """A context is immutable: its bytes always are those of its pairs."""
    context = Context({"a": "1"})

    with pytest.raises(AttributeError):
        context.encoded = b"\x00\x00"  # type: ignore[misc]
