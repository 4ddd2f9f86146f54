"""Which pass of activation recompute runs: megatron-core's checkpoint and Transformer Engine's."""

import sys

import torch
from megatron.core.tensor_parallel.random import is_checkpointing


def is_first_pass() -> bool:
    """Whether this forward will run again before its backward, and may leave measuring to that.

    An evaluation runs without gradient too, but not inside a checkpoint. In FP8 the layers are
    inside Transformer Engine's, of which megatron-core's flag does not tell.
    """
    if torch.is_grad_enabled():
        return False
    # Looked up, not imported: whoever checkpoints by it has imported it.
    engine = sys.modules.get("transformer_engine.pytorch.distributed")
    in_fp8 = getattr(engine, "is_fp8_activation_recompute_enabled", lambda: False)
    return bool(is_checkpointing() or in_fp8())
