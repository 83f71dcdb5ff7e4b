"""The key store: versions, passphrases, reloading, and writers that lose nothing."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from importlib.metadata import metadata
from pathlib import Path

import pytest
from attrs import evolve
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from kms_core import (
    AccessDenied,
    InvalidRequest,
    KeyDisabled,
    KeyNotFound,
    KMSError,
    Secret,
    Unavailable,
)
from kms_local import KeyStore, layout, material, private_file

PASSPHRASE = Secret("correct horse battery staple")
IV, TEXT = bytes(12), b"text"


def _same(one: AESGCM, other: AESGCM) -> bool:
    """Whether two ciphers have one key."""
    return one.encrypt(IV, TEXT, None) == other.encrypt(IV, TEXT, None)


def test_a_new_store_has_one_key_with_one_version(path: Path) -> None:
    """The key is made just now, enabled, and has 32 random bytes."""
    before = datetime.now(UTC) - timedelta(seconds=1)
    contents = KeyStore.create(path, key="app").read()
    (version,) = contents.keys["app"].versions.values()
    assert list(contents.keys) == ["app"]
    assert (version.number, version.state, contents.kdf) == (1, "enabled", None)
    assert before <= version.created <= datetime.now(UTC)
    assert len(set(version.material)) > 1
    assert path.stat().st_mode & 0o777 == 0o600


def test_stores_differ(path: Path, tmp_path: Path) -> None:
    """Id and key are drawn anew for each."""
    one, other = KeyStore.create(path).read(), KeyStore.create(tmp_path / "other").read()
    assert one.store_id != other.store_id
    assert one.keys["default"].versions[1].material != other.keys["default"].versions[1].material


def test_creating_never_overwrites_a_store(path: Path, store: KeyStore) -> None:
    """Keys cannot be lost by running the same command twice."""
    before = path.read_bytes()
    with pytest.raises(InvalidRequest, match="never overwritten"):
        KeyStore.create(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("name", ["", "a b", "a/b", "-a", "x" * 65, "a\n"])
def test_impossible_key_names_are_refused(path: Path, store: KeyStore, name: str) -> None:
    """A name that could not be read back is not written."""
    with pytest.raises(InvalidRequest, match="not a key name"):
        store.add_key(name)
    with pytest.raises(InvalidRequest, match="not a key name"):
        KeyStore.create(path.with_name("new"), key=name)
    assert not path.with_name("new").exists()


def test_making_a_store_object_does_no_io(tmp_path: Path) -> None:
    """What is wrong with a path is found at the first use."""
    store = KeyStore(tmp_path / "nowhere" / "keys")
    assert store.last_store_id is None
    with pytest.raises(Unavailable, match=r"nowhere.*kms init"):
        store.read()


def test_a_relative_path_stays_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Changing the working directory later does not change the store."""
    monkeypatch.chdir(tmp_path)
    store = KeyStore.create("keys")
    monkeypatch.chdir("/")
    assert store.path == tmp_path / "keys"
    assert store.read().keys.keys() == {"default"}


def test_a_damaged_file_is_named(path: Path, store: KeyStore) -> None:
    """The message names file and damage, and not what stands in the file."""
    document = json.loads(path.read_text())
    document["keys"]["default"]["versions"]["1"]["state"] = "sesame"
    private_file.replace(path, json.dumps(document).encode())
    with pytest.raises(Unavailable) as caught:
        store.read()
    assert f"key store {path} is damaged: default/1" in str(caught.value).replace(
        "key 'default'", "default"
    )
    assert "sesame" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_rotated_key_keeps_its_old_versions(store: KeyStore) -> None:
    """The new version is primary, the old one has the material it had."""
    old = store.version("default", 1)
    assert store.rotate("default") == 2
    ref, new = store.primary("default")
    assert (ref.key, ref.version) == ("default", 2)
    assert not _same(old, new)
    assert _same(old, store.version("default", 1))
    assert list(store.key("default").versions) == [1, 2]


def test_a_new_version_gets_a_number_never_used(path: Path, store: KeyStore) -> None:
    """Numbers grow past a gap that somebody made by hand, and past a primary set back."""
    store.rotate("default")
    store.rotate("default")
    contents = store.read()
    versions = {n: v for n, v in contents.keys["default"].versions.items() if n != 2}
    keys = {"default": layout.Key(1, versions)}
    private_file.replace(path, layout.serialise(evolve(contents, keys=keys)))
    assert store.rotate("default") == 4
    assert list(store.key("default").versions) == [1, 3, 4]


def test_keys_are_added_beside_others(store: KeyStore) -> None:
    """A second key has material of its own, and its name can be taken once."""
    store.add_key("other")
    assert not _same(store.version("default", 1), store.version("other", 1))
    with pytest.raises(InvalidRequest, match="already"):
        store.add_key("other")


def test_a_disabled_version_gives_no_cipher_until_enabled(store: KeyStore) -> None:
    """Its material is kept; the message says how to allow it again."""
    cipher = store.version("default", 1)
    store.rotate("default")
    store.disable("default", 1)
    with pytest.raises(KeyDisabled, match="kms local enable default 1"):
        store.version("default", 1)
    assert store.primary("default")[0].version == 2
    store.enable("default", 1)
    assert _same(cipher, store.version("default", 1))


def test_a_disabled_primary_stays_primary(store: KeyStore) -> None:
    """Disabling never makes an older version wrap again."""
    store.rotate("default")
    store.disable("default", 2)
    with pytest.raises(KeyDisabled):
        store.primary("default")
    assert store.key("default").primary == 2


@pytest.mark.parametrize(
    "use",
    [
        lambda store: store.key("none"),
        lambda store: store.primary("none"),
        lambda store: store.rotate("none"),
        lambda store: store.version("none", 1),
        lambda store: store.version("default", 2),
        lambda store: store.disable("default", 2),
        lambda store: store.enable("none", 1),
    ],
)
def test_unknown_keys_and_versions_are_not_found(path: Path, store: KeyStore, use: object) -> None:
    """The message says how to see what there is, and the file is left alone."""
    before = path.read_bytes()
    assert callable(use)
    with pytest.raises(KeyNotFound, match="kms local keys"):
        use(store)
    assert path.read_bytes() == before


def test_a_failed_change_leaves_the_store_as_it_was(
    path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rename that fails is an outage, and the old keys go on working."""
    before = path.read_bytes()

    def fail(*_args: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", fail)
        with pytest.raises(Unavailable, match=r"cannot change .* No space left .* old content"):
            store.rotate("default")
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]
    assert store.rotate("default") == 2


def test_a_store_never_outgrows_its_own_limit(
    path: Path, store: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What readers would refuse as too large is not written."""
    monkeypatch.setattr(private_file, "MAX_BYTES", len(path.read_bytes()) + 50)
    with pytest.raises(InvalidRequest, match="full"):
        store.rotate("default")
    assert store.key("default").primary == 1


def test_a_change_to_a_missing_store_says_so(tmp_path: Path) -> None:
    """A writer gets a reader's explanation."""
    with pytest.raises(Unavailable, match="kms init"):
        KeyStore(tmp_path / "none").rotate("default")


# Reloading


def test_changes_by_others_are_seen(path: Path, store: KeyStore) -> None:
    """A rotation through another object is used at the next call."""
    assert store.primary("default")[0].version == 1
    KeyStore(path).rotate("default")
    assert store.primary("default")[0].version == 2


def test_an_unchanged_file_is_read_once(store: KeyStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Asking costs one ``stat``."""
    contents = store.read()
    monkeypatch.setattr(private_file, "read", None)
    assert store.read() is contents


def test_a_file_that_vanishes_is_an_outage_until_it_is_back(path: Path, store: KeyStore) -> None:
    """Nothing is served from memory that the disk no longer says."""
    data = path.read_bytes()
    store.read()
    path.unlink()
    with pytest.raises(Unavailable):
        store.primary("default")
    private_file.create(path, data)
    assert store.primary("default")[0].version == 1


def test_a_mode_that_was_widened_is_noticed_at_the_next_change(path: Path, store: KeyStore) -> None:
    """The check belongs to reading: it is made whenever the file is read."""
    store.read()
    KeyStore(path).rotate("default")
    path.chmod(0o644)
    with pytest.raises(Unavailable, match="chmod 600"):
        store.read()


# Passphrases


@pytest.fixture
def sealed(path: Path) -> KeyStore:
    """A store under ``PASSPHRASE``."""
    return KeyStore.create(path, passphrase=PASSPHRASE)


def test_a_passphrase_hides_the_material(path: Path, sealed: KeyStore) -> None:
    """The file holds 60 bytes per version, and the right passphrase gives one and the same key."""
    (version,) = sealed.read().keys["default"].versions.values()
    assert len(version.material) == layout.SEALED_KEY_BYTES
    again = KeyStore(path, passphrase=PASSPHRASE)
    assert _same(sealed.version("default", 1), again.version("default", 1))


def test_versions_and_keys_are_added_under_the_passphrase(path: Path, sealed: KeyStore) -> None:
    """Everything that is added opens with the same passphrase."""
    sealed.rotate("default")
    sealed.add_key("other")
    again = KeyStore(path, passphrase=PASSPHRASE)
    for name, number in (("default", 1), ("default", 2), ("other", 1)):
        assert _same(sealed.version(name, number), again.version(name, number))


@pytest.mark.parametrize(
    ("passphrase", "message"),
    [
        (Secret("hunter2"), "does not open"),
        (Secret("\ud800"), "not Unicode"),
        (None, "needs the setting passphrase"),
    ],
    ids=["wrong", "no text", "missing"],
)
def test_a_wrong_passphrase_is_access_denied(
    path: Path, sealed: KeyStore, passphrase: Secret | None, message: str
) -> None:
    """Neither using nor adding keys works, and the file is left alone."""
    before = path.read_bytes()
    store = KeyStore(path, passphrase=passphrase)
    for use in (store.primary, store.rotate, lambda _: store.add_key("new")):
        with pytest.raises(AccessDenied, match=message) as caught:
            use("default")
        assert "hunter" not in str(caught.value)
        assert not isinstance(caught.value.__context__, UnicodeError)
    assert path.read_bytes() == before


def test_reading_names_needs_no_passphrase(path: Path, sealed: KeyStore) -> None:
    """Which keys there are is not secret."""
    assert list(KeyStore(path).read().keys) == ["default"]


def test_a_passphrase_for_an_open_store_is_refused(path: Path, store: KeyStore) -> None:
    """Whoever set a passphrase believes that the file is sealed."""
    with pytest.raises(AccessDenied, match="has no passphrase"):
        KeyStore(path, passphrase=PASSPHRASE).primary("default")


def test_an_empty_passphrase_is_refused(path: Path) -> None:
    """Sealing under nothing would only look safe."""
    with pytest.raises(InvalidRequest, match="empty"):
        KeyStore.create(path, passphrase=Secret(""))
    assert not path.exists()


def test_sealed_material_stays_where_it_was_put(path: Path, sealed: KeyStore) -> None:
    """Material moved to another version, key or store opens nothing."""
    sealed.rotate("default")
    contents = sealed.read()
    first = contents.keys["default"].versions[1]
    versions = {1: first, 2: evolve(first, number=2)}
    moved = {
        "version": evolve(contents, keys={"default": layout.Key(2, versions)}),
        "key": evolve(
            contents, keys={"default": layout.Key(1, {1: first}), "x": layout.Key(1, {1: first})}
        ),
        "store": evolve(contents, store_id="0123456789abcdef"),
    }
    for what, name, number in (("version", "default", 2), ("key", "x", 1), ("store", "default", 1)):
        private_file.replace(path, layout.serialise(moved[what]))
        with pytest.raises(AccessDenied):
            sealed.version(name, number)


def test_one_damaged_version_does_not_stop_rotation(path: Path, sealed: KeyStore) -> None:
    """The passphrase is proved by any version that it opens."""
    contents = sealed.read()
    broken = evolve(contents.keys["default"].versions[1], material=bytes(60))
    keys = {"broken": layout.Key(1, {1: broken}), **contents.keys}
    private_file.replace(path, layout.serialise(evolve(contents, keys=keys)))
    assert sealed.rotate("default") == 2


def test_the_passphrase_is_derived_once(
    path: Path, sealed: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Eight threads and a reload pay for one scrypt; closing wipes what it gave."""
    derived: list[bytearray] = []
    derive = material.derive

    def counted(passphrase: Secret, kdf: layout.Kdf) -> bytearray:
        derived.append(derive(passphrase, kdf))
        return derived[-1]

    monkeypatch.setattr(material, "derive", counted)
    store = KeyStore(path, passphrase=PASSPHRASE)
    start = threading.Barrier(8)

    def work() -> None:
        start.wait(30)
        store.primary("default")

    threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    KeyStore(path, passphrase=PASSPHRASE).rotate("default")
    assert store.primary("default")[0].version == 2
    (key, _of_the_writer) = derived
    assert any(key)
    store.close()
    assert not any(key)


def test_a_store_replaced_by_another_is_derived_anew(path: Path, sealed: KeyStore) -> None:
    """Another salt makes another key; the old one is wiped, not mixed up."""
    sealed.unlock()
    path.unlink()
    KeyStore.create(path, passphrase=PASSPHRASE).close()
    assert sealed.primary("default")[0].store_id == KeyStore(path).read().store_id


def test_a_store_works_after_closing(sealed: KeyStore) -> None:
    """Closing forgets; the next use derives again."""
    cipher = sealed.version("default", 1)
    sealed.close()
    assert _same(cipher, sealed.version("default", 1))


def test_closing_does_not_reach_into_a_use_under_way(sealed: KeyStore) -> None:
    """Each use has a copy of the sealing key: wiping the kept one zeroes no key that seals."""
    copy = sealed._sealing_key(sealed.read())
    sealed.close()
    assert copy is not None
    assert any(copy)


def test_every_use_wipes_what_it_unsealed(
    sealed: KeyStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the copy of the sealing key nor the material outlives the cipher's construction."""
    used: list[bytearray] = []
    unseal = material.unseal

    def kept(sealing_key: bytearray, stored: bytes, key_uri: str) -> bytearray:
        used.extend([sealing_key, unseal(sealing_key, stored, key_uri)])
        return used[-1]

    monkeypatch.setattr(material, "unseal", kept)
    sealed.version("default", 1)
    sealed.rotate("default")

    assert len(used) == 4
    assert not any(map(any, used))
    assert sealed._derived is not None
    assert any(sealed._derived.key)


def test_a_key_wiped_in_mid_use_seals_nothing(sealed: KeyStore) -> None:
    """A sealing key of zeros fits no version, so nothing is written under it."""
    sealed.unlock()
    derived = sealed._derived
    assert derived is not None
    derived.key[:] = bytes(32)
    with pytest.raises(AccessDenied):
        sealed.rotate("default")


def test_nothing_shows_the_passphrase(path: Path, sealed: KeyStore) -> None:
    """Object and file keep it to themselves."""
    sealed.unlock()
    secret = PASSPHRASE.reveal()
    assert secret not in repr(sealed) + repr(vars(sealed))
    assert secret not in path.read_text()


# Several writers


ROTATIONS = 15


def test_writers_in_two_processes_lose_nothing(path: Path, store: KeyStore) -> None:
    """Every version that any process added is there, under a number of its own."""
    code = (
        "import sys; from kms_local import KeyStore; store = KeyStore(sys.argv[1])\n"
        f"for _ in range({ROTATIONS}): print(store.rotate('default'))"
    )
    command = [sys.executable, "-c", code, str(path)]
    writers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    printed = [writer.communicate(timeout=120)[0].split() for writer in writers]
    assert [writer.returncode for writer in writers] == [0, 0]
    numbers = sorted(int(number) for numbers in printed for number in numbers)
    assert numbers == list(range(2, 2 * ROTATIONS + 2))
    assert list(store.key("default").versions) == [1, *numbers]


def test_writers_in_threads_lose_nothing(path: Path, store: KeyStore) -> None:
    """The same holds within a process, for one object and for several."""
    numbers: list[int] = []
    stores = [store, store, KeyStore(path), KeyStore(path)]

    def work(mine: KeyStore) -> None:
        numbers.extend(mine.rotate("default") for _ in range(5))

    threads = [threading.Thread(target=work, args=(mine,), daemon=True) for mine in stores]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(numbers) == list(range(2, 22))
    assert list(path.parent.iterdir()) == [path]


def test_readers_never_see_half_a_file(path: Path, store: KeyStore) -> None:
    """While a writer rotates, every read of a reader succeeds."""
    done = threading.Event()
    failures: list[KMSError] = []

    def read() -> None:
        reader = KeyStore(path)
        while not done.is_set():
            try:
                reader.primary("default")
            except KMSError as exc:
                failures.append(exc)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    for _ in range(20):
        store.rotate("default")
    done.set()
    thread.join(30)
    assert failures == []


# Recovery by hand


def _recovery_script() -> str:
    """The script that the README gives, as shipped in the distribution's metadata."""
    readme = metadata("kms-local").json["description"]
    assert isinstance(readme, str)
    _, _, after = readme.partition("```python recovery\n")
    return after.partition("```")[0]


@pytest.mark.parametrize("passphrase", [None, PASSPHRASE], ids=["bare", "sealed"])
def test_keys_are_recovered_by_the_readmes_script(path: Path, passphrase: Secret | None) -> None:
    """With the README and the file alone, every key comes back."""
    store = KeyStore.create(path, passphrase=passphrase)
    store.rotate("default")
    store.add_key("other")
    arguments = [str(path), *([] if passphrase is None else [passphrase.reveal()])]
    run = subprocess.run(
        [sys.executable, "-c", _recovery_script(), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    lines = [line.split() for line in run.stdout.splitlines()]
    assert [line[:2] for line in lines] == [["default", "1"], ["default", "2"], ["other", "1"]]
    for name, number, recovered in lines:
        assert _same(AESGCM(bytes.fromhex(recovered)), store.version(name, int(number)))


def test_material_of_another_name_does_not_open() -> None:
    """The key URI is part of the seal."""
    key = bytes(range(32))
    stored = material.seal(key, bytes(32), "local://0123456789abcdef/a/1")
    assert material.opens(key, stored, "local://0123456789abcdef/a/1")
    with pytest.raises(InvalidTag):
        material.unseal(key, stored, "local://0123456789abcdef/a/2")
