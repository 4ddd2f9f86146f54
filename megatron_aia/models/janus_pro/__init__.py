"""Janus-Pro: text and image codes have heads of their own; images to look at come from SigLIP."""
