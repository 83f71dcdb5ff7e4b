"""Writes the vector files: ``python -m tests.vectors.generate`` in the project's root.

The same input gives the same bytes, so what changes in a file is a change of the format.  Vectors
of a released version stay as they are; new ones are added.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Final

from tests.vectors import invalid, valid
from tests.vectors.forge import Vector

FOLDER: Final = Path(__file__).with_name("v1")
FILES: Final[Mapping[str, Callable[[], Iterator[Vector]]]] = {
    "valid-messages": valid.messages,
    "valid-capsules": valid.capsules,
    "valid-streams": valid.streams,
    "valid-thresholds": valid.thresholds,
    "invalid-first-bytes": invalid.first_bytes,
    "invalid-text": invalid.texts,
    "invalid-maps": invalid.maps,
    "invalid-capsules": invalid.capsules,
    "invalid-beside": invalid.beside,
    "invalid-recipients": invalid.recipients,
    "invalid-extensions": invalid.extensions,
    "invalid-scope": invalid.scope_rule,
    "invalid-pairing": invalid.pairing,
    "invalid-wraps": invalid.wrapped_keys,
    "invalid-commitment-and-mac": invalid.commitment_and_mac,
    "invalid-messages": invalid.messages,
    "invalid-streams": invalid.streams,
    "invalid-thresholds": invalid.thresholds,
}


def content(name: str) -> str:
    """What belongs into a file."""
    vectors = [vector.to_json() for vector in FILES[name]()]
    return json.dumps({"version": 1, "vectors": vectors}, indent=1) + "\n"


def main() -> None:
    """Write every file."""
    FOLDER.mkdir(exist_ok=True)
    for name in FILES:
        (FOLDER / f"{name}.json").write_text(content(name))


if __name__ == "__main__":
    main()
