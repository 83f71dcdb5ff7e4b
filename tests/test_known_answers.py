"""The primitives against published answers: NIST, RFCs and drafts, as ``cryptography`` ships them.

Where the library calls a primitive itself, it is the library that is asked.
"""

from __future__ import annotations

import hmac
import itertools
import json
from collections.abc import Iterator
from hashlib import shake_256
from typing import Any

import pytest
from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hpke, keywrap
from cryptography.hazmat.primitives.asymmetric import ec, mlkem, padding, rsa, x25519
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from kms_core import IntegrityError, shamir
from kms_core.aead import OneShot, StreamKey, _midstate

cryptography_vectors = pytest.importorskip(
    "cryptography_vectors", reason="the published vectors come with cryptography-vectors"
)

Record = dict[str, str]


def lines(path: str) -> Iterator[str]:
    """The lines of a file of vectors."""
    with cryptography_vectors.open_vector_file(path, "r") as file:
        yield from file


def records(path: str) -> Iterator[Record]:
    """Blocks of ``name = value``, each with the ``[name = value]`` of its section.

    Blocks end with a blank line, or where a name comes again.  A lone ``FAIL`` is a name too.
    """
    section: Record = {}
    record: Record = {}
    for raw in itertools.chain(lines(path), [""]):
        line = raw.strip()
        if line.startswith("["):
            name, _, value = line.strip("[]").partition("=")
            section = {**section, name.strip(): value.strip()}
        elif line and not line.startswith("#"):
            name, _, value = map(str.strip, line.partition("="))
            if name in record:
                yield {**section, **record}
                record = {}
            record[name] = value
        elif not line and record:
            yield {**section, **record}
            record = {}


def raw(record: Record, name: str) -> bytes:
    """A value in bytes."""
    return bytes.fromhex(record[name])


# --- AES-256-GCM ---------------------------------------------------------------------------------


def gcm_records(path: str) -> list[Record]:
    """Those with IVs and tags of the sizes that the format uses."""
    return [
        record
        for record in records(f"ciphers/AES/GCM/{path}")
        if (record["IVlen"], record["Taglen"]) == ("96", "128")
    ]


def test_gcm_encrypts_as_nist_says() -> None:
    """SP 800-38D: ciphertext and tag, into a new object and into a buffer."""
    found = gcm_records("gcmEncryptExtIV256.rsp")
    assert len(found) > 300
    for record in found:
        key, iv, aad = raw(record, "Key"), raw(record, "IV"), raw(record, "AAD")
        plaintext, sealed = raw(record, "PT"), raw(record, "CT") + raw(record, "Tag")
        into = bytearray(len(sealed))
        StreamKey(key).encrypt_into(iv, memoryview(plaintext), aad, memoryview(into))

        assert OneShot(key).encrypt(iv, plaintext, aad) == sealed
        assert into == sealed


def test_gcm_decrypts_or_refuses_as_nist_says() -> None:
    """What does not authenticate is an ``IntegrityError``, and nothing comes out."""
    outcomes = []
    for record in gcm_records("gcmDecrypt256.rsp"):
        key, iv, aad = raw(record, "Key"), raw(record, "IV"), raw(record, "AAD")
        sealed = raw(record, "CT") + raw(record, "Tag")
        into = bytearray(len(sealed) - 16)
        outcomes.append("FAIL" in record)
        if "FAIL" in record:
            with pytest.raises(IntegrityError):
                OneShot(key).decrypt(iv, sealed, aad)
            with pytest.raises(IntegrityError):
                StreamKey(key).decrypt_into(iv, memoryview(sealed), aad, memoryview(into))
        else:
            StreamKey(key).decrypt_into(iv, memoryview(sealed), aad, memoryview(into))
            assert OneShot(key).decrypt(iv, sealed, aad) == raw(record, "PT") == into

    assert outcomes.count(True) > 100
    assert outcomes.count(False) > 100


# --- HMAC and HKDF -------------------------------------------------------------------------------


def test_hmac_sha_512_is_that_of_rfc_4231() -> None:
    """The midstates that all keys are derived from."""
    found = list(records("HMAC/rfc-4231-sha512.txt"))
    assert len(found) == 6
    for record in found:
        mac = _midstate(raw(record, "Key")).copy()
        mac.update(raw(record, "Msg"))
        assert mac.finalize() == raw(record, "MD")


def rfc_5869() -> list[Record]:
    """The three test cases with SHA-256; a blank line separates facts of one case."""
    cases: list[Record] = []
    for record in records("KDF/rfc-5869-HKDF-SHA256.txt"):
        if "COUNT" in record:
            cases.append({})
        cases[-1].update(record)
    return cases


def test_one_block_is_the_first_of_rfc_5869() -> None:
    """HKDF-Expand of one block is HMAC over the information and 01, which is all the format uses.

    The RFC has answers for SHA-256 only; that ours with SHA-512 is ``HKDFExpand`` is tested with
    the key schedule.
    """
    cases = rfc_5869()
    assert len(cases) == 3
    for case in cases:
        prk, info, okm = raw(case, "PRK"), raw(case, "info"), raw(case, "OKM")

        assert hmac.digest(prk, info + b"\x01", "sha256") == okm[:32]
        assert HKDFExpand(SHA256(), len(okm), info).derive(prk) == okm
        assert hmac.digest(raw(case, "salt") or bytes(32), raw(case, "IKM"), "sha256") == prk


# --- wrapping keys -------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["AE_256", "AD_256"])
def test_aes_kwp_is_that_of_nist(suffix: str) -> None:
    """SP 800-38F and RFC 5649: what digests and data keys are wrapped with."""
    failures = 0
    found = list(records(f"keywrap/kwtestvectors/KWP_{suffix}.txt"))
    assert len(found) >= 500
    for record in found:
        key, wrapped = raw(record, "K"), raw(record, "C")
        if "FAIL" in record:
            failures += 1
            with pytest.raises(keywrap.InvalidUnwrap):
                keywrap.aes_key_unwrap_with_padding(key, wrapped)
        else:
            secret = raw(record, "P")
            assert keywrap.aes_key_wrap_with_padding(key, secret) == wrapped
            assert keywrap.aes_key_unwrap_with_padding(key, wrapped) == secret

    assert (failures > 0) == (suffix == "AD_256")


def oaep_examples() -> Iterator[tuple[rsa.RSAPrivateKey, bytes, bytes]]:
    """Key, message and encryption of each example."""
    facts: dict[str, int] = {}
    label, message = "", b""
    key: rsa.RSAPrivateKey | None = None
    for line in map(str.strip, lines("asymmetric/RSA/oaep-custom/oaep-sha256-sha256.txt")):
        if line.startswith("# Private key"):
            facts, key = {}, None
        if line.startswith("#"):
            label = line.strip("#: ")
        elif label == "Message":
            message = bytes.fromhex(line)
        elif label == "Encryption":
            key = key or _rsa_key(facts)
            yield key, message, bytes.fromhex(line)
        else:
            facts[label] = int(line, 16)


def _rsa_key(facts: dict[str, int]) -> rsa.RSAPrivateKey:
    public = rsa.RSAPublicNumbers(facts["Public exponent"], facts["Modulus"])
    return rsa.RSAPrivateNumbers(
        p=facts["Prime 1"],
        q=facts["Prime 2"],
        d=facts["Exponent"],
        dmp1=facts["Prime exponent 1"],
        dmq1=facts["Prime exponent 2"],
        iqmp=facts["Coefficient"],
        public_numbers=public,
    ).private_key()


def test_rsa_oaep_with_sha_256_decrypts_what_others_encrypted() -> None:
    """As services with RSA keys do it; checked by Bouncy Castle when these were made."""
    oaep = padding.OAEP(padding.MGF1(SHA256()), SHA256(), None)
    found = 0
    for key, message, encryption in oaep_examples():
        assert key.decrypt(encryption, oaep) == message
        assert key.decrypt(key.public_key().encrypt(message, oaep), oaep) == message
        found += 1

    assert found > 20


# --- ML-KEM and HPKE -----------------------------------------------------------------------------


def has_ml_kem() -> bool:
    """Whether this build of ``cryptography`` has it; the one in wheels does from 48.0 on."""
    try:
        mlkem.MLKEM768PrivateKey.generate()
    except UnsupportedAlgorithm:
        return False
    return True


needs_ml_kem = pytest.mark.skipif(
    not has_ml_kem(), reason="this build of cryptography lacks ML-KEM"
)


@needs_ml_kem
@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("kat_MLKEM_768.rsp", mlkem.MLKEM768PrivateKey),
        ("kat_MLKEM_1024.rsp", mlkem.MLKEM1024PrivateKey),
    ],
)
def test_ml_kem_is_that_of_fips_203(path: str, kind: Any) -> None:
    """The public key of a seed, the secret in a ciphertext, and the other one in a damaged one."""
    first = list(itertools.islice(records(f"asymmetric/MLKEM/{path}"), 20))
    assert len(first) == 20
    for record in first:
        key = kind.from_seed_bytes(raw(record, "d") + raw(record, "z"))

        assert key.public_key().public_bytes_raw() == raw(record, "pk")
        assert key.decapsulate(raw(record, "ct")) == raw(record, "ss")
        assert key.decapsulate(raw(record, "ct_n")) == raw(record, "ss_n")


def hpke_vectors(path: str, kem: int, kdf: int, aead: int) -> Iterator[dict[str, Any]]:
    """The vectors in base mode of one combination."""
    with cryptography_vectors.open_vector_file(f"HPKE/{path}", "r") as file:
        for vector in json.load(file):
            wanted = (0, kem, kdf, aead)
            if (vector["mode"], vector["kem_id"], vector["kdf_id"], vector["aead_id"]) == wanted:
                yield vector


def check_hpke(vector: dict[str, Any], suite: hpke.Suite, private: Any, aead: Any) -> None:
    """Whether ``private`` opens what the vector's key seals.

    The published ciphertexts have associated data, ours never have: so the published key and nonce
    are checked against them and seal again without.
    """
    cipher = aead(bytes.fromhex(vector["key"]))
    nonce, enc, info = (bytes.fromhex(vector[name]) for name in ("base_nonce", "enc", "info"))
    published = vector["encryptions"][0]
    plaintext, ciphertext = bytes.fromhex(published["pt"]), bytes.fromhex(published["ct"])
    assert cipher.encrypt(nonce, plaintext, bytes.fromhex(published["aad"])) == ciphertext

    sealed = enc + cipher.encrypt(nonce, plaintext, b"")
    assert suite.decrypt(sealed, private, info) == plaintext
    with pytest.raises(InvalidTag):
        suite.decrypt(sealed, private, info + b"\x00")


def test_hpke_for_p_256_is_that_of_rfc_9180() -> None:
    """0x0601: DHKEM(P-256, HKDF-SHA256), HKDF-SHA256, AES-256-GCM."""
    suite = hpke.Suite(hpke.KEM.P256, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM)
    found = list(hpke_vectors("test-vectors.json", 0x0010, 0x0001, 0x0002))
    assert found
    for vector in found:
        private = ec.derive_private_key(int(vector["skRm"], 16), ec.SECP256R1())
        point = private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

        assert point.hex() == vector["pkRm"]
        check_hpke(vector, suite, private, AESGCM)


@needs_ml_kem
def test_hpke_for_ml_kem_1024_and_p_384_is_that_of_the_draft() -> None:
    """0x0602; the public key is that of ML-KEM and then the point, as the key URI hashes it."""
    suite = hpke.Suite(hpke.KEM.MLKEM1024_P384, hpke.KDF.HKDF_SHA384, hpke.AEAD.AES_256_GCM)
    found = list(hpke_vectors("hpke-pq-test-vectors.json", 0x0051, 0x0002, 0x0002))
    assert found
    for vector in found:
        seeds = shake_256(bytes.fromhex(vector["skRm"])).digest(64 + 48)
        post_quantum = mlkem.MLKEM1024PrivateKey.from_seed_bytes(seeds[:64])
        classical = ec.derive_private_key(int.from_bytes(seeds[64:], "big"), ec.SECP384R1())
        point = classical.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)

        raw_public = post_quantum.public_key().public_bytes_raw() + point
        assert raw_public.hex() == vector["pkRm"]
        private = hpke.MLKEM1024P384PrivateKey(post_quantum, classical)
        check_hpke(vector, suite, private, AESGCM)


@needs_ml_kem
def test_hpke_for_ml_kem_768_and_x25519_is_that_of_the_draft() -> None:
    """0x0603, except that the published vectors seal with ChaCha20-Poly1305."""
    suite = hpke.Suite(hpke.KEM.MLKEM768_X25519, hpke.KDF.HKDF_SHA256, hpke.AEAD.CHACHA20_POLY1305)
    found = list(hpke_vectors("hpke-pq-test-vectors.json", 0x647A, 0x0001, 0x0003))
    assert found
    for vector in found:
        seeds = shake_256(bytes.fromhex(vector["skRm"])).digest(64 + 32)
        post_quantum = mlkem.MLKEM768PrivateKey.from_seed_bytes(seeds[:64])
        classical = x25519.X25519PrivateKey.from_private_bytes(seeds[64:])

        raw_public = (
            post_quantum.public_key().public_bytes_raw() + classical.public_key().public_bytes_raw()
        )
        assert raw_public.hex() == vector["pkRm"]
        private = hpke.MLKEM768X25519PrivateKey(post_quantum, classical)
        check_hpke(vector, suite, private, ChaCha20Poly1305)


# --- GF(2^8) -------------------------------------------------------------------------------------


def test_the_field_is_that_of_fips_197() -> None:
    """The products and the inverse that section 4.2 works out, seen through shares.

    A share at x of the secret 0 with the coefficient c is c times x.
    """
    for coefficient, index, product in (
        (0x57, 0x83, 0xC1),
        (0x57, 0x13, 0xFE),
        (0x57, 0x02, 0xAE),
        (0x57, 0x10, 0x07),
        (0x53, 0xCA, 0x01),
    ):
        shares = shamir.split(b"\x00", 2, [index], lambda _, c=coefficient: bytes((c,)))  # type: ignore[misc]
        assert shares == {index: bytes((product,))}
