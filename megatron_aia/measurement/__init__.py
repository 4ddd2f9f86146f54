"""Intensities of any model, target profiles fitted to them, and what is drawn of both."""
