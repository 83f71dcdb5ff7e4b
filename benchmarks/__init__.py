"""Benchmarks: what the library costs beside raw cryptography, raw SDK calls and its peers.

``python -m benchmarks`` measures; docs/benchmarks.md says how to read what comes out.
"""
