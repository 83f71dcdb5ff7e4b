"""A certificate authority that nobody trusts but the tests: TLS for servers on loopback."""

from __future__ import annotations

import ssl
import tempfile
from pathlib import Path
from typing import Final

import trustme

from kms_core.testing.servers.closing import Closed
from kms_core.testing.servers.gate import LOOPBACK


class Authority(Closed):
    """Issues certificates to servers; clients that are to trust them are given ``ca_file``.

    Its private key never leaves the process, and ``ca_file`` is gone after ``close``.
    """

    def __init__(self) -> None:
        self._authority = trustme.CA()
        self._folder = tempfile.TemporaryDirectory(prefix="kms-authority-")
        self.ca_file: Final = Path(self._folder.name, "ca.pem")
        self._authority.cert_pem.write_to_path(str(self.ca_file))

    def issue(self, *names: str) -> trustme.LeafCert:
        """A certificate with its private key for loopback, and for ``names`` too."""
        return self._authority.issue_cert(LOOPBACK, "localhost", *names)

    def server_context(self, *names: str) -> ssl.SSLContext:
        """What a server on loopback needs for TLS; ``names`` are further hosts it stands for."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.issue(*names).configure_cert(context)
        return context

    def close(self) -> None:
        """Remove the folder.  Idempotent."""
        self._folder.cleanup()
