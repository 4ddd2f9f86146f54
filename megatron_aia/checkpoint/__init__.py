"""Saving and resuming, under any layout."""
