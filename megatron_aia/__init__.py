"""Training of unified multimodal models with Attention Interaction Alignment on Megatron-Core."""

__version__ = "0.1.0"
