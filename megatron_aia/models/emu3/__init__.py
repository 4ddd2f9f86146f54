"""Emu3: one decoder, one vocabulary of text and image codes."""
