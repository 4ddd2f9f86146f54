"""Attention Interaction Alignment: intensity, loss, injection, profiles. Knows no model."""
