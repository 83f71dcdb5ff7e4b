"""SoftHSM 2, a PKCS#11 token in software, with a token directory of its own.

The module reads its configuration from the environment when it is initialised, so a process has one
``SoftHsm`` at a time.  Keys are made in another process: the caller's is left as it was.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal, Self

from kms_core.testing.servers.closing import Closed

MODULE_VARIABLE: Final = "SOFTHSM2_MODULE"
_CONFIGURATION_VARIABLE: Final = "SOFTHSM2_CONF"
_WELL_KNOWN: Final = (
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/x86_64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib/aarch64-linux-gnu/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)
_ADDRESS_VARIABLE: Final = "P11_KIT_SERVER_ADDRESS"
_CLIENTS: Final = (
    "/usr/lib/x86_64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib/aarch64-linux-gnu/pkcs11/p11-kit-client.so",
    "/usr/lib64/pkcs11/p11-kit-client.so",
    "/usr/local/lib/pkcs11/p11-kit-client.so",
)
_PACKAGES: Final = ("softhsm2", "libsofthsm2", "softhsm2-common")
HOW_TO_INSTALL: Final = (
    "SoftHSM 2 is not here: apt-get install softhsm2, dnf install softhsm or brew install softhsm, "
    f"or name its module in ${MODULE_VARIABLE}"
)

HOW_TO_INSTALL_REMOTE: Final = (
    "p11-kit is not here: apt-get install p11-kit p11-kit-modules, or dnf install p11-kit-server"
)

KeyKind = Literal["AES", "RSA", "EC", "Ed25519", "HMAC"]


class SoftHsm(Closed):
    """One token with a random label and PIN, until ``close``."""

    def __init__(self, folder: Path | None = None) -> None:
        """In ``folder``, or one of its own; raises ``FileNotFoundError`` without SoftHSM."""
        module = self.find()
        if module is None:
            raise FileNotFoundError(HOW_TO_INSTALL)
        self.module: Final = module
        self.token: Final = f"kms-{secrets.token_hex(4)}"
        self.pin: Final = secrets.token_hex(8)
        self._own = tempfile.TemporaryDirectory(prefix="kms-softhsm-") if folder is None else None
        self._folder = Path(self._own.name) if self._own is not None else folder or Path()
        self._tokens = self._folder / "tokens"
        self._tokens.mkdir()
        self._configuration = self._folder / "softhsm2.conf"
        self._configuration.write_text(
            f"directories.tokendir = {self._tokens}\n"
            "objectstore.backend = file\nlog.level = ERROR\n"
        )
        self._before = os.environ.get(_CONFIGURATION_VARIABLE)
        os.environ[_CONFIGURATION_VARIABLE] = str(self._configuration)
        try:
            self._make_token()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def find() -> Path | None:
        """The module: what ``$SOFTHSM2_MODULE`` names, or at one of the usual places."""
        named = os.environ.get(MODULE_VARIABLE)
        places = (named,) if named else _WELL_KNOWN
        return next((Path(place) for place in places if Path(place).is_file()), None)

    @classmethod
    def install(cls, folder: Path) -> Path:
        """Find the module or install it, for test sessions; raises ``FileNotFoundError``.

        As root with apt; otherwise the packages are unpacked into ``folder``, which has to stay.
        Processes that do so at once wait for each other.
        """
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder / "install.lock"):
            return cls.find() or _installed_by_apt() or _unpacked(folder / "root")

    def create_key(
        self, label: str, kind: KeyKind = "AES", *, size: int | None = None, curve: str = "P-256"
    ) -> None:
        """A key or key pair in the token; ``size`` in bits (default: AES 256, RSA 2048)."""
        options = [label, kind, str(size or {"RSA": 2048}.get(kind, 256)), curve]
        command = [sys.executable, "-c", _MAKE_KEY, str(self.module), self.token, *options]
        done = subprocess.run(  # noqa: S603  our own code
            command, input=self.pin, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise ValueError(f"no key {label} was made: {done.stderr.strip().splitlines()[-1:]}")

    def remove_token(self) -> None:
        """Pull the token out: its directory is gone until ``restore_token``."""
        self._tokens.rename(self._hidden)
        self._tokens.mkdir()

    def restore_token(self) -> None:
        """Plug it in again."""
        self._tokens.rmdir()
        self._hidden.rename(self._tokens)

    def recreate_token(self) -> None:
        """Replace the token by one with the same label, PIN and keys, as after a repair."""
        self.remove_token()
        shutil.copytree(self._hidden, self._folder / "copy")
        shutil.rmtree(self._hidden)
        (self._folder / "copy").rename(self._hidden)
        self.restore_token()

    @contextmanager
    def remote(self) -> Iterator[RemoteToken]:
        """The same token in a process of its own, which can hang, die and come back.

        By p11-kit, which passes RSA and elliptic curves on but not AES-GCM, AES-KWP or HMAC;
        raises ``FileNotFoundError`` without it.
        """
        with RemoteToken(self.module, self.token, self._folder / "p11-kit") as remote:
            yield remote

    def close(self) -> None:
        """Forget the token.  Idempotent."""
        _restore(_CONFIGURATION_VARIABLE, self._before)
        if self._own is not None:
            self._own.cleanup()

    @property
    def _hidden(self) -> Path:
        return self._folder / "removed"

    def _make_token(self) -> None:
        command = [_utility(self.module), "--module", str(self.module)]
        command += ["--init-token", "--free", "--label", self.token]
        command += ["--so-pin", secrets.token_hex(8), "--pin", self.pin]
        done = subprocess.run(  # noqa: S603  the tool that belongs to the module
            command, capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise OSError(f"softhsm2-util made no token: {done.stderr.strip() or done.stdout}")


class RemoteToken(Closed):
    """A token behind a socket: a server process, and one more for each process that uses it."""

    def __init__(self, module: Path, token: str, address: Path) -> None:
        """Raises ``FileNotFoundError`` without p11-kit."""
        client = next((Path(place) for place in _CLIENTS if Path(place).is_file()), None)
        command = shutil.which("p11-kit")
        if client is None or command is None:
            raise FileNotFoundError(HOW_TO_INSTALL_REMOTE)
        #: What to load in place of SoftHSM's own.
        self.module: Final = client
        self._address = address
        self._command = [command, "server", "--foreground", "--name", str(address)]
        self._command += ["--provider", str(module), f"pkcs11:token={token}"]
        self._server: subprocess.Popen[str] | None = None
        self._before = os.environ.get(_ADDRESS_VARIABLE)

    def __enter__(self) -> Self:
        self.restart()
        os.environ[_ADDRESS_VARIABLE] = f"unix:path={self._address}"
        return self

    def close(self) -> None:
        """End it, and forget where it was."""
        _restore(_ADDRESS_VARIABLE, self._before)
        self.kill()

    def stop(self) -> None:
        """Hang: calls are accepted and not answered, until ``cont``."""
        self._signal(signal.SIGSTOP)

    def cont(self) -> None:
        """Go on, with the calls that were made meanwhile first."""
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """Die, until ``restart``.  Idempotent."""
        if self._server is None:
            return
        self._signal(signal.SIGKILL)
        self._server.communicate()
        self._server = None

    def restart(self) -> None:
        """Come back: those who were connected have to connect again."""
        self.kill()
        self._address.unlink(missing_ok=True)
        self._server = subprocess.Popen(  # noqa: S603  the system's own tool
            self._command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        if self._server.stdout is None or not self._server.stdout.readline():
            self.kill()
            raise OSError("p11-kit server does not start")

    def _signal(self, number: signal.Signals) -> None:
        # The server and the processes that it has made for its clients are a group of their own.
        if self._server is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._server.pid, number)


#: Run with module, token, label, kind, size, curve; the PIN comes on stdin.
_MAKE_KEY: Final = """
import sys
import pkcs11
from pkcs11.util.ec import encode_named_curve_parameters
module, token, label, kind, size, curve = sys.argv[1:]
name = label.encode()
A, K = pkcs11.Attribute, pkcs11.KeyType
with pkcs11.lib(module).get_token(token_label=token).open(rw=True, user_pin=sys.stdin.read()) as s:
    if kind == "AES":
        usage = {A.WRAP: True, A.UNWRAP: True, A.ENCRYPT: True, A.DECRYPT: True}
        s.generate_key(K.AES, int(size), id=name, label=label, store=True, template=usage)
    elif kind == "HMAC":
        usage = pkcs11.MechanismFlag.SIGN | pkcs11.MechanismFlag.VERIFY
        s.generate_key(
            K.GENERIC_SECRET, int(size), id=name, label=label, store=True, capabilities=usage,
            mechanism=pkcs11.Mechanism.GENERIC_SECRET_KEY_GEN,
        )
    elif kind == "RSA":
        s.generate_keypair(K.RSA, int(size), id=name, label=label, store=True)
    elif kind == "EC":
        oids = {"P-256": "secp256r1", "P-384": "secp384r1", "P-521": "secp521r1"}
        oid = encode_named_curve_parameters(oids.get(curve, curve))
        parameters = s.create_domain_parameters(K.EC, {A.EC_PARAMS: oid}, local=True)
        parameters.generate_keypair(id=name, label=label, store=True)
    else:
        named = b"\\x13\\x0cedwards25519"  # a PrintableString, the one spelling SoftHSM takes
        parameters = s.create_domain_parameters(K.EC_EDWARDS, {A.EC_PARAMS: named}, local=True)
        parameters.generate_keypair(
            id=name, label=label, store=True,
            mechanism=pkcs11.Mechanism.EC_EDWARDS_KEY_PAIR_GEN,
        )
"""


def _utility(module: Path) -> str:
    """``softhsm2-util``, from PATH or from where the module was unpacked."""
    unpacked = [parent / "bin" / "softhsm2-util" for parent in module.parents]
    beside = next((str(path) for path in unpacked if path.is_file()), None)
    return beside or shutil.which("softhsm2-util") or "softhsm2-util"


def _installed_by_apt() -> Path | None:
    apt = shutil.which("apt-get")
    if apt is None or os.geteuid() != 0:
        return None
    for arguments in (["install", "-y", "-qq", "softhsm2"], ["update", "-qq"]) * 2:
        done = subprocess.run(  # noqa: S603  the system's own tool
            [apt, *arguments], capture_output=True, check=False, env=_quiet()
        )
        if arguments[0] == "install" and not done.returncode:
            break
    return SoftHsm.find()


def _unpacked(root: Path) -> Path:
    """The module from packages that are downloaded and unpacked, which needs no privilege."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt and dpkg and not root.exists():
        root.mkdir()
        subprocess.run(  # noqa: S603  the system's own tool
            [apt, "download", "-qq", *_PACKAGES], cwd=root, capture_output=True, check=False
        )
        for package in root.glob("*.deb"):
            subprocess.run(  # noqa: S603  the system's own tool
                [dpkg, "-x", str(package), str(root)], capture_output=True, check=False
            )
    module = next(iter(root.rglob("libsofthsm2.so")), None) if root.exists() else None
    if module is None:
        raise FileNotFoundError(HOW_TO_INSTALL)
    os.environ[MODULE_VARIABLE] = str(module)
    return module


def _restore(variable: str, before: str | None) -> None:
    if before is None:
        os.environ.pop(variable, None)
    else:
        os.environ[variable] = before


def _quiet() -> dict[str, str]:
    return {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    with path.open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
