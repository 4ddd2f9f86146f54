"""Attention with row masses: one interface, several exact methods."""
