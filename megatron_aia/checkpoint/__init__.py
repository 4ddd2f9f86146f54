"""Saving, resuming and converting."""
