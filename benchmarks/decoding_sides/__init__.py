"""Sides of the comparison of ``benchmarks/decoding.py``."""
