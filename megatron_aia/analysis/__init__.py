"""Measuring intensities and drawing them."""
