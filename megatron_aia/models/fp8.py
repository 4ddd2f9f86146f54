"""FP8 of the decoder's layers: what megatron-core is told, and which GPUs can do it."""

import os
from typing import Any

from packaging.version import Version

from megatron_aia.config import Config

_LEAST_CAPABILITY = {"delayed": (8, 9), "tensorwise": (8, 9), "blockwise": (9, 0), "mxfp8": (10, 0)}
_LEAST_CAPABILITY_OF_ATTENTION = (9, 0)

_READS_OWN_PICKLES = Version("2.11.99")
"""Up to here Transformer Engine reads the pickled state of ``delayed`` back without being told."""
_ALLOW_PICKLES = "NVTE_ALLOW_UNSAFE_PICKLE_EXTRA_STATE"


def fp8_options(
    config: Config, capability: tuple[int, int], engine: str | None = None
) -> dict[str, Any]:
    """Return the ``TransformerConfig`` arguments of FP8; none where it is off.

    Embeddings, heads and an image tower stay in bfloat16, as megatron-core and this project build
    them of other layers.

    Args:
        config: of the run.
        capability: compute capability of the GPU.
        engine: version of Transformer Engine; None is not checked.

    Raises:
        ValueError: the GPU has no FP8, or not this recipe; or no run could resume.
    """
    training = config.training
    if training.fp8_format is None:
        return {}
    _check(
        f"--fp8-recipe {training.fp8_recipe}", capability, _LEAST_CAPABILITY[training.fp8_recipe]
    )
    if training.fp8_dot_product_attention:
        name = "--fp8-dot-product-attention"
        _check(name, capability, _LEAST_CAPABILITY_OF_ATTENTION)
    if training.fp8_recipe == "delayed":
        _check_resumable(engine)
    return {
        "fp8": training.fp8_format,
        "fp8_recipe": training.fp8_recipe,
        "fp8_amax_history_len": training.fp8_amax_history_len,
        "fp8_amax_compute_algo": training.fp8_amax_compute_algo,
        "fp8_dot_product_attention": training.fp8_dot_product_attention,
    }


def _check(name: str, capability: tuple[int, int], least: tuple[int, int]) -> None:
    if capability < least:
        needed, found = (".".join(map(str, version)) for version in (least, capability))
        raise ValueError(
            f"{name} needs a GPU of compute capability {needed}, not {found}; leave FP8 out"
        )


def _check_resumable(engine: str | None) -> None:
    """Say before the run what its first resume would end with."""
    allowed = os.environ.get(_ALLOW_PICKLES) == "1"
    if engine is not None and Version(engine) > _READS_OWN_PICKLES and not allowed:
        raise ValueError(
            f"--fp8-recipe delayed keeps a pickled state that Transformer Engine {engine} refuses "
            f"to load, so this run could not resume; set {_ALLOW_PICKLES}=1 if you trust your "
            "checkpoints, or pass --fp8-recipe tensorwise"
        )
