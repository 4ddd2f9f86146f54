"""Names of the weights of Janus-Pro's image tokeniser (VQ): the authors' and Transformers'."""

CODEBOOK_COUNTER = "quantize.codebook_used"
"""The authors' count of codes in use, which Transformers has not."""

_PAIRS = (
    ("encoder.conv_blocks.", "encoder.down."),
    ("decoder.conv_blocks.", "decoder.up."),
    (".res.", ".block."),
    (".mid.0.", ".mid.block_1."),
    (".mid.1.", ".mid.attn_1."),
    (".mid.2.", ".mid.block_2."),
)


def to_transformers(name: str) -> str:
    """Return Transformers' name of a tensor; its own stay."""
    for authors, transformers in _PAIRS:
        name = name.replace(authors, transformers)
    return name


def to_original(name: str) -> str:
    """Return the authors' name of a tensor; their own stay."""
    for authors, transformers in _PAIRS:
        name = name.replace(transformers, authors)
    return name
