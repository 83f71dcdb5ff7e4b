"""The SoftHSM helper: tokens of one's own, keys of each kind, and every way to lose them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from kms_core.testing.servers import SoftHsm
from kms_core.testing.servers import softhsm as helper
from kms_core.testing.servers.softhsm import KeyKind, RemoteToken

pytest.importorskip("pkcs11", reason="needs python-pkcs11, of the extra pkcs11")
pytestmark = pytest.mark.skipif(os.name != "posix", reason="platform: SoftHSM is for POSIX here")

#: Prints what is under a label, by type; run with module, token, label and the PIN on stdin.
LIST = """
import sys
import pkcs11
module, name, label = sys.argv[1:]
try:
    token = pkcs11.lib(module).get_token(token_label=name)
    with token.open(user_pin=sys.stdin.read()) as session:
        found = session.get_objects({pkcs11.Attribute.LABEL: label})
        print(*sorted(f"{o.object_class.name}/{o.key_type.name}" for o in found))
except pkcs11.PKCS11Error as exc:
    print(type(exc).__name__)
"""


@pytest.fixture(scope="module")
def module() -> Path:
    """SoftHSM, installed where that is possible."""
    # One folder for all workers of a run: they wait for each other's installation.
    try:
        return SoftHsm.install(Path(__file__).parents[2] / "build" / "softhsm")
    except FileNotFoundError as exc:
        pytest.skip(str(exc))


@pytest.fixture(scope="module")
def shared(module: Path) -> Iterator[SoftHsm]:
    """A token that nothing is done to."""
    with SoftHsm() as made:
        made.create_key("kek")
        made.create_key("signer", "EC")
        yield made


def content(token: SoftHsm, label: str = "kek") -> str:
    """What another process finds in the token."""
    command = [sys.executable, "-c", LIST, str(token.module), token.token, label]
    done = subprocess.run(command, input=token.pin, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("kind", "objects"),
    [
        ("AES", "SECRET_KEY/AES"),
        ("HMAC", "SECRET_KEY/GENERIC_SECRET"),
        ("RSA", "PRIVATE_KEY/RSA PUBLIC_KEY/RSA"),
        ("EC", "PRIVATE_KEY/EC PUBLIC_KEY/EC"),
        ("Ed25519", "PRIVATE_KEY/EC_EDWARDS PUBLIC_KEY/EC_EDWARDS"),
    ],
)
def test_keys_of_each_kind_are_made(shared: SoftHsm, kind: KeyKind, objects: str) -> None:
    """And are there for other processes."""
    shared.create_key(f"one-{kind}", kind)
    assert content(shared, f"one-{kind}") == objects


def test_key_that_cannot_be_made_is_an_error(shared: SoftHsm) -> None:
    """With the label and what the token said, in one line."""
    with pytest.raises(ValueError, match="no key odd was made") as caught:
        shared.create_key("odd", "AES", size=7)
    assert "\n" not in str(caught.value)
    assert shared.pin not in str(caught.value)


def test_own_process_never_loads_the_module(module: Path) -> None:
    """Whoever uses the token decides how it is initialised."""
    probe = (
        "import sys\n"
        "from kms_core.testing.servers import SoftHsm\n"
        "with SoftHsm() as token: token.create_key('kek')\n"
        "print('pkcs11' in sys.modules)"
    )
    environment = {**os.environ, helper.MODULE_VARIABLE: str(module)}
    done = subprocess.run(
        [sys.executable, "-c", probe], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout.strip() == "False"


def test_token_is_lost_and_found(shared: SoftHsm) -> None:
    """Removed it is gone, restored it has its keys."""
    shared.remove_token()
    try:
        assert content(shared) == "NoSuchToken"
    finally:
        shared.restore_token()
    assert content(shared) == "SECRET_KEY/AES"


def test_replaced_token_has_the_same_keys(shared: SoftHsm) -> None:
    """In other files, as after a repair."""
    folder = shared._tokens.stat().st_ino
    shared.recreate_token()
    assert shared._tokens.stat().st_ino != folder
    assert content(shared) == "SECRET_KEY/AES"


def test_environment_is_left_as_it_was(
    module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Closing twice does no more; a folder that was given stays."""
    for before in ("/elsewhere.conf", None):
        if before is None:
            monkeypatch.delenv("SOFTHSM2_CONF", raising=False)
        else:
            monkeypatch.setenv("SOFTHSM2_CONF", before)
        folder = tmp_path / str(before is None)
        folder.mkdir()
        token = SoftHsm(folder)
        assert os.environ["SOFTHSM2_CONF"] == str(folder / "softhsm2.conf")
        token.close()
        token.close()
        assert os.environ.get("SOFTHSM2_CONF") == before
        assert folder.is_dir()


def test_tokens_are_told_apart(module: Path, tmp_path: Path, shared: SoftHsm) -> None:
    """Label and PIN are random, and a folder of one's own is removed in the end."""
    with SoftHsm() as other:
        folder = other._folder
        assert (other.token, other.pin) != (shared.token, shared.pin)
    assert not folder.exists()


def test_token_that_cannot_be_made_leaves_nothing_behind(
    module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even its configuration in the environment."""
    before = os.environ.get("SOFTHSM2_CONF")
    monkeypatch.setattr(helper, "_utility", lambda _module: "false")
    with pytest.raises(OSError, match="softhsm2-util made no token"):
        SoftHsm()
    assert os.environ.get("SOFTHSM2_CONF") == before


def test_missing_module_is_told_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """With how to get it."""
    monkeypatch.setenv(helper.MODULE_VARIABLE, "/nowhere/libsofthsm2.so")
    assert SoftHsm.find() is None
    with pytest.raises(FileNotFoundError, match="apt-get install softhsm2") as caught:
        SoftHsm()
    assert "\n" not in str(caught.value)


class TestInstalling:
    """By the system's tools, which are played here."""

    @pytest.fixture
    def tools(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A PATH with these alone, on a machine without SoftHSM."""
        monkeypatch.setattr(helper, "_WELL_KNOWN", (str(tmp_path / "usr" / "libsofthsm2.so"),))
        monkeypatch.delenv(helper.MODULE_VARIABLE, raising=False)
        folder = tmp_path / "bin"
        folder.mkdir()
        monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
        return folder

    @staticmethod
    def write(tools: Path, name: str, script: str) -> None:
        """A tool of this name."""
        path = tools / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def test_root_has_apt_install_it(
        self, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With fresh lists if the first attempt fails."""
        monkeypatch.setattr(os, "geteuid", lambda: 0)
        usr = tmp_path / "usr"
        self.write(
            tools,
            "apt-get",
            f'if [ "$1" = update ]; then touch {usr}.fresh; exit 0; fi\n'
            f"[ -e {usr}.fresh ] && mkdir {usr} && touch {usr}/libsofthsm2.so",
        )
        assert SoftHsm.install(tmp_path / "build") == usr / "libsofthsm2.so"

    def test_others_unpack_the_packages(
        self, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Once; afterwards the environment names the module."""
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        monkeypatch.setenv(helper.MODULE_VARIABLE, "")  # restored by this in the end
        self.write(tools, "apt-get", "touch libsofthsm2.deb")
        self.write(tools, "dpkg", 'mkdir -p "$3/usr/lib" && touch "$3/usr/lib/libsofthsm2.so"')
        module = SoftHsm.install(tmp_path / "build")
        assert module == tmp_path / "build" / "root" / "usr" / "lib" / "libsofthsm2.so"
        assert SoftHsm.install(tmp_path / "build") == SoftHsm.find() == module

    def test_nobody_can(self, tools: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Offline, say: it is told what to install."""
        monkeypatch.setattr(os, "geteuid", lambda: 1000)
        self.write(tools, "apt-get", "exit 100")
        self.write(tools, "dpkg", "exit 2")
        with pytest.raises(FileNotFoundError, match="SoftHSM 2 is not here"):
            SoftHsm.install(tmp_path / "build")


#: Signs at each line of stdin, and prints what comes of it; run with module and token.
SIGN = """
import sys
from pathlib import Path
import pkcs11
module, name, pin = sys.stdin.readline().split()
key = None
for _ in sys.stdin:
    try:
        lib = pkcs11.lib(module)
        if key is None:
            lib.reinitialize()
            session = lib.get_token(token_label=name).open(user_pin=pin)
            key = session.get_key(object_class=pkcs11.ObjectClass.PRIVATE_KEY, label="signer")
        print(len(key.sign(bytes(32), mechanism=pkcs11.Mechanism.ECDSA)), flush=True)
    except pkcs11.PKCS11Error as exc:
        key = None
        print(type(exc).__name__, flush=True)
"""


class TestRemote:
    """The token in another process, by p11-kit."""

    @pytest.fixture
    def remote(self, shared: SoftHsm) -> Iterator[RemoteToken]:
        """Running."""
        with ExitStack() as stack:
            try:
                remote = stack.enter_context(shared.remote())
            except FileNotFoundError as exc:
                pytest.skip(str(exc))
            yield remote

    @pytest.fixture
    def signer(self, shared: SoftHsm, remote: RemoteToken) -> Iterator[subprocess.Popen[str]]:
        """A process that has signed once."""
        with subprocess.Popen(
            [sys.executable, "-c", SIGN],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
        ) as process:
            assert process.stdin is not None
            process.stdin.write(f"{remote.module} {shared.token} {shared.pin}\n")
            assert ask(process) == "64"
            yield process
            process.kill()

    def test_it_hangs_and_goes_on(self, remote: RemoteToken, signer: subprocess.Popen[str]) -> None:
        """A call that is made meanwhile is answered afterwards."""
        remote.stop()
        answers: list[str] = []
        caller = threading.Thread(target=lambda: answers.append(ask(signer)))
        caller.start()
        caller.join(0.3)
        assert caller.is_alive()
        remote.cont()
        caller.join(30)
        assert answers == ["64"]

    def test_it_dies_and_comes_back(
        self, remote: RemoteToken, signer: subprocess.Popen[str]
    ) -> None:
        """For those who connect again."""
        remote.kill()
        remote.kill()
        assert ask(signer) != "64"
        remote.restart()
        assert ask(signer) == "64"

    def test_it_leaves_nothing_behind(self, shared: SoftHsm, remote: RemoteToken) -> None:
        """Neither in the environment nor among the processes."""
        before = os.environ["P11_KIT_SERVER_ADDRESS"]
        with pytest.MonkeyPatch.context() as patch:
            patch.delenv("P11_KIT_SERVER_ADDRESS")
            with RemoteToken(shared.module, shared.token, shared._folder / "other") as other:
                server = other._server
                assert server is not None
            assert "P11_KIT_SERVER_ADDRESS" not in os.environ
            assert server.poll() is not None
        assert os.environ["P11_KIT_SERVER_ADDRESS"] == before

    def test_server_that_does_not_start_is_an_error(
        self, shared: SoftHsm, remote: RemoteToken, tmp_path: Path
    ) -> None:
        """At once, and not by a client that finds nobody."""
        other = RemoteToken(shared.module, shared.token, tmp_path / ("x" * 200))
        with pytest.raises(OSError, match="does not start"):
            other.restart()


def test_missing_p11_kit_is_told_in_one_line(
    shared: SoftHsm, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With how to get it."""
    monkeypatch.setattr(helper, "_CLIENTS", ())
    with pytest.raises(FileNotFoundError, match="apt-get install p11-kit"), shared.remote():
        pass


def ask(process: subprocess.Popen[str]) -> str:
    """What the process says to one more request."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    return process.stdout.readline().strip()
