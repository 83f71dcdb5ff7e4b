"""The suite every provider passes.

A provider's test file is a subclass with two fixtures; what its service cannot do is declared as a
class attribute, and every skip names the declaration it rests on::

    class TestAcme(ProviderConformance):
        rotates = True
        plugin_module = "kms_acme"
        sdk_modules = ("acme_sdk",)

        @pytest.fixture
        def provider(self): ...  # a ready instance, closed afterwards

        @pytest.fixture
        def key_id(self): ...  # the key id its hooks are called with

More is checked the more is declared: ``signs`` and the fixture ``signing_key`` for signatures,
``wraps_offline`` for public keys, the fixture ``panel`` for what happens when the service fails.
``kms_core.testing.suite.declared`` has all that can be declared.

The checks report through ``pytest.fail`` rather than ``assert``, so that they also hold under
``python -O`` and say what is wrong in words that help a plugin's author.
"""

from __future__ import annotations

from kms_core.testing.suite.failing import Failing
from kms_core.testing.suite.keeping import Keeping
from kms_core.testing.suite.living import Living
from kms_core.testing.suite.publishing import Publishing
from kms_core.testing.suite.shape import Shape
from kms_core.testing.suite.signing import Signing
from kms_core.testing.suite.wrapping import Wrapping


class ProviderConformance(Shape, Wrapping, Keeping, Signing, Publishing, Failing, Living):
    """Subclass it as ``Test…`` with the fixtures ``provider`` and ``key_id``."""
