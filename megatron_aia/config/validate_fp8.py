"""Checks of 8-bit floating point: what Transformer Engine cannot run, and what does not pay."""

from megatron_aia.config.settings import flag
from megatron_aia.config.tree import Config, TrainingConfig

_MULTIPLE = 16
"""Both dimensions of an FP8 matrix must be multiples of this."""
_ATTENTION_HEAD_SIZE = 128
_FLAGS = ("fp8_recipe", "fp8_amax_history_len", "fp8_amax_compute_algo")


def check_fp8(config: Config, has_gpu: bool) -> None:
    """Check that FP8 matrix products and FP8 attention can run.

    What depends on the GPU itself is checked where the layers are chosen.

    Raises:
        ValueError: naming the flag, its value and a remedy.
    """
    training = config.training
    if training.fp8_format is None:
        if training.fp8_dot_product_attention:
            raise ValueError("--fp8-dot-product-attention works only with FP8; add --fp8-format")
        return
    name = f"--fp8-format {training.fp8_format}"
    if not has_gpu:
        raise ValueError(f"{name} needs a GPU and there is none; leave it out")
    if config.model.transformer_impl == "local":
        raise ValueError(
            f"{name} is Transformer Engine's, and --transformer-impl is local; use auto"
        )
    if not training.bf16:
        raise ValueError(f"{name} keeps weights and activations in bfloat16; add --bf16")
    _check_sizes(config, name)
    if training.fp8_dot_product_attention:
        _check_attention(config)


def _check_sizes(config: Config, name: str) -> None:
    """Check the matrices of one tensor-parallel rank."""
    model, (tensor, _, context) = config.model, config.parallel.layout
    widths = {
        flag("hidden_size"): model.hidden_size,
        f"{flag('ffn_hidden_size')} / {tensor}": model.ffn_hidden_size // tensor,
        "the heads of a rank": model.num_attention_heads // tensor * model.head_size,
        "the key heads of a rank": model.num_query_groups // tensor * model.head_size,
    }
    for what, width in widths.items():
        if width % _MULTIPLE:
            raise ValueError(
                f"{name} multiplies matrices whose sides are multiples of {_MULTIPLE}, and {what} "
                f"gives {width}; change the model or --tensor-model-parallel-size"
            )
    shared = context * (tensor if config.parallel.sequence_parallel else 1)
    if config.data.seq_length % (_MULTIPLE * shared):
        multiple = _MULTIPLE * shared
        fitting = -(-config.data.seq_length // multiple) * multiple
        raise ValueError(
            f"{name} needs sequences of a multiple of {multiple} tokens in this layout, and "
            f"--seq-length is {config.data.seq_length}; use {fitting}"
        )


def _check_attention(config: Config) -> None:
    """Check what cuDNN's FP8 attention asks for, on Hopper and in training."""
    training, name = config.training, "--fp8-dot-product-attention"
    if training.fp8_recipe != "delayed":
        raise ValueError(
            f"{name} trains with the recipe delayed only, and --fp8-recipe is "
            f"{training.fp8_recipe}; use delayed, or leave the attention in bfloat16"
        )
    if config.model.head_size != _ATTENTION_HEAD_SIZE:
        raise ValueError(
            f"{name} trains with a head size of {_ATTENTION_HEAD_SIZE}, not "
            f"{config.model.head_size}; leave it out"
        )
    if config.data.packing:
        raise ValueError(f"{name} cannot keep samples of a packed sequence apart; add --no-packing")
    if config.parallel.context_parallel_size > 1:
        raise ValueError(
            f"{name} cannot share sequences; use --context-parallel-size 1, or leave it out"
        )
    if config.aia.aia and config.aia.aia_attention not in ("auto", "sampled"):
        raise ValueError(
            f"--aia-attention {config.aia.aia_attention} is an attention of its own, and {name} "
            "another; use --aia-attention sampled, which measures beside it"
        )


def notes_on_fp8(config: Config) -> list[str]:
    """Return one line for every FP8 setting that has no effect, or costs more than it gains."""
    training = config.training
    if training.fp8_format is None:
        return [
            f"{flag(name)} has no effect without --fp8-format"
            for name in _FLAGS
            if getattr(training, name) != getattr(TrainingConfig, name)
        ]
    notes = [
        f"{flag(name)} has no effect with --fp8-recipe {training.fp8_recipe}"
        for name in _FLAGS[1:]
        if training.fp8_recipe != "delayed"
        and getattr(training, name) != getattr(TrainingConfig, name)
    ]
    if training.fp8_dot_product_attention:
        notes.append(
            "--fp8-dot-product-attention rarely pays: on an H200, NVIDIA published 7.53 ms for "
            "causal attention over 8,192 tokens forward and backward, and 6.79 ms in bfloat16"
        )
    return notes
