"""Benchmarks: what their scorers are given, and what they said."""
