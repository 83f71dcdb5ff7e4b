"""The parts of the conformance suite, by theme; ``kms_core.testing.conformance`` is the whole."""
