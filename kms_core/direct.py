"""What the services do themselves: encrypt and decrypt a few bytes, sign and verify."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, TypeVar

from kms_core import arguments
from kms_core.aead import random_key
from kms_core.arguments import ContextLike, Data
from kms_core.errors import IntegrityError, InvalidCiphertext, InvalidRequest, NoMatchingRecipient
from kms_core.relay import Relay
from kms_core.routing import Router
from kms_core.settings import Settings
from kms_core.types import Ciphertext, DataKey, PublicKey, Signature
from kms_core.uri import provider_type

T = TypeVar("T")

MAX_DIRECT_BYTES: Final = 4096  # what every service encrypts itself; more is for envelopes


class Direct(ABC):
    """The part of a client that needs no envelope; see ``kms_core.client``."""

    _settings: Settings
    _router: Router

    @abstractmethod
    def _check_open(self) -> None:
        """Raise ``InvalidRequest`` once the client is closed."""

    def encrypt(
        self, data: Data, context: ContextLike = None, *, via: str | None = None
    ) -> Ciphertext:
        """Let one service encrypt 1 to 4096 bytes; the result names who did.

        Falls back in order of preference, never to a weaker protection level unless
        ``allow_weaker``.  ``via`` asks one instance only.
        """
        plaintext = arguments.data(data)
        if not 1 <= len(plaintext) <= MAX_DIRECT_BYTES:
            raise InvalidRequest(
                f"direct encryption takes 1 to {MAX_DIRECT_BYTES} bytes, not {len(plaintext)}: "
                "seal() takes more"
            )
        bound = arguments.context(context)
        return self._direct(
            "encrypt", self._encrypting(via), lambda relay: relay.encrypt(plaintext, bound)
        )

    def decrypt(self, ciphertext: Ciphertext, context: ContextLike = None) -> bytes:
        """Let the service that holds the key (or a replica of it) decrypt.

        Raises ``InvalidCiphertext`` if it does not authenticate.
        """
        self._check_open()
        if not isinstance(ciphertext, Ciphertext):
            raise InvalidRequest("decrypt() takes a Ciphertext; sealed bytes are for open()")
        bound = (ciphertext, arguments.context(context))
        try:
            return self._router.unwrap([bound], lambda _, plaintext: bytes(plaintext))
        except NoMatchingRecipient:
            raise
        except IntegrityError:
            raise InvalidCiphertext(
                "the ciphertext is altered or foreign, or the context differs"
            ) from None

    def generate_data_key(self, context: ContextLike = None, *, via: str | None = None) -> DataKey:
        """A 256-bit key for the caller's own use, with its wrap; ``decrypt`` brings it back."""
        bound = arguments.context(context)

        def generate(relay: Relay) -> DataKey:
            if relay.supports("generate_data_key"):
                return relay.generate_data_key(bound)
            key = random_key()
            return DataKey(key, relay.encrypt(key, bound))

        return self._direct("generate_data_key", self._encrypting(via), generate)

    def sign(
        self, data: Data, *, algorithm: str | None = None, via: str | None = None
    ) -> Signature:
        """Let a service sign ``data``, up to 1 MiB; the result names the key that did.

        Asks the instances with ``purpose = "sign"`` in their order, or ``via`` alone.
        ``algorithm`` is one of ``SIGNATURE_ALGORITHMS`` or, for a MAC that only the service can
        check, of ``MAC_ALGORITHMS``; without it the key's preferred one.
        """
        message = arguments.message_to_sign(data)
        if algorithm is not None:
            arguments.check_algorithm(algorithm)
        return self._direct(
            "sign", self._signing(via), lambda relay: relay.sign(message, algorithm)
        )

    def verify(self, data: Data, signature: Signature, *, via: str | None = None) -> bool:
        """Whether ``signature`` is one of ``data`` by the key it names.

        Done here with the key's public half, which the instance that has the key is asked for
        once; only MACs are left to the service.  Raises ``AllInstancesFailed`` if no instance has
        that key or none could be asked.
        """
        self._check_open()
        if not isinstance(signature, Signature):
            raise InvalidRequest("verify() takes the Signature that sign() returned")
        message = arguments.message_to_sign(data)
        arguments.check_algorithm(signature.algorithm)
        names = tuple(self._router.relays) if via is None else self._named(via)
        candidates = (self._router.relays[name] for name in names)
        relays = [
            relay for relay in candidates if provider_type(signature.key_uri) == relay.info.provider
        ]
        for relay in relays:
            known = relay.verify_here(message, signature)
            if known is not None:
                return known
        if not relays:
            raise InvalidRequest(f"no instance can have the key {signature.key_uri}")
        return self._router.first(
            "verify",
            [relay.name for relay in relays],
            lambda relay: relay.verify(message, signature),
            allow_weaker=True,
            key=signature.key_uri,
        )

    def public_key(self, *, via: str | None = None) -> PublicKey:
        """The public key of a signing instance (the first, or ``via``), as the service tells it."""
        return self._direct("public_key", self._signing(via), lambda relay: relay.public_key())

    def _signing(self, via: str | None) -> tuple[str, ...]:
        if via is not None:
            return self._named(via)
        signing = tuple(
            name for name, each in self._settings.instances.items() if each.purpose == "sign"
        )
        if not signing:
            raise InvalidRequest('no instance has purpose = "sign"; name one with via=')
        return signing

    def _named(self, via: str) -> tuple[str, ...]:
        if via not in self._router.relays:
            raise InvalidRequest(f"no instance {via!r}; known are {', '.join(self._router.relays)}")
        return (via,)

    def _encrypting(self, via: str | None) -> tuple[str, ...]:
        return self._settings.encrypting() if via is None else self._named(via)

    def _direct(self, operation: str, names: Sequence[str], work: Callable[[Relay], T]) -> T:
        self._check_open()
        policy = self._settings.envelope
        return self._router.first(operation, names, work, allow_weaker=policy.allow_weaker)
