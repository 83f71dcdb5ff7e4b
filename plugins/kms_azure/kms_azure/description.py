"""The versions of a key: the service lists them in pages, and in no order."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final
from urllib.parse import urlsplit

from attrs import evolve

from kms_azure.answer import Answer, malformed
from kms_azure.names import VaultKey, vault_of
from kms_azure.service import Service
from kms_core import AccessDenied

MAX_PAGES: Final = 100  # of 25 versions each: more than any key has


def versions_of(service: Service, key: VaultKey) -> tuple[str, ...]:
    """All versions, oldest first; none if this identity may not list them.

    Of those that were made in one second, that of ``key`` is the youngest.
    """
    try:
        found = [
            (item.inside("attributes").moment("created") or 0, item.kid())
            for page in _pages(service, evolve(key, version=None))
            for item in page.items("value")
        ]
    except AccessDenied:
        return ()
    found.sort(key=lambda made: (made[0], made[1] == key))
    return tuple(version.version or "" for _, version in found)


def _pages(service: Service, key: VaultKey) -> Iterator[Answer]:
    query = ""
    for _ in range(MAX_PAGES):
        page = service.versions(key, query)
        yield page
        if page.fields.get("nextLink") is None:
            return
        query = _query(key, page.text("nextLink"))
    malformed(key, "end of its list of versions")


def _query(key: VaultKey, link: str) -> str:
    """What tells the next page; the link must lead to this vault and this key."""
    parts = urlsplit(link)
    here = parts.path.lower() == f"/keys/{key.name}/versions".lower()
    if not here or vault_of(f"{parts.scheme}://{parts.netloc}") != key.vault:
        malformed(key, "nextLink")
    return f"?{parts.query}"
