"""Benchmarks of every operator and of whole training steps: ``pytest benchmarks --benchmark-only``."""
