"""Optimizer, learning-rate schedule, and an update that refuses non-finite gradients."""

import math
from typing import Any

import torch
from megatron.core.distributed import DistributedDataParallel
from megatron.core.optimizer import (
    MegatronOptimizer,
    OptimizerConfig,
    clip_grads,
    get_megatron_optimizer,
)
from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

from megatron_aia.config import Config
from megatron_aia.runtime.parallel import Parallel, is_anywhere


def build_optimizer(
    config: Config, models: list[DistributedDataParallel], parallel: Parallel
) -> MegatronOptimizer:
    """Build megatron-core's Adam over the model chunks of this process."""
    training = config.training
    return get_megatron_optimizer(
        OptimizerConfig(
            optimizer="adam",
            lr=training.lr,
            min_lr=training.min_lr,
            weight_decay=training.weight_decay,
            adam_beta1=training.adam_beta1,
            adam_beta2=training.adam_beta2,
            adam_eps=training.adam_eps,
            clip_grad=training.clip_grad,
            bf16=training.bf16,
            params_dtype=torch.bfloat16 if training.bf16 else torch.float32,
            use_distributed_optimizer=config.parallel.use_distributed_optimizer,
            overlap_param_gather=config.parallel.overlap_param_gather,
        ),
        models,
        use_gloo_process_groups=False,
        pg_collection=parallel.groups,
    )


def build_scheduler(config: Config, optimizer: MegatronOptimizer) -> OptimizerParamScheduler:
    """Build the schedule; its steps are optimizer steps."""
    training = config.training
    return OptimizerParamScheduler(
        optimizer,
        init_lr=0.0,
        max_lr=training.lr,
        min_lr=training.min_lr,
        lr_warmup_steps=training.lr_warmup_iters,
        lr_decay_steps=training.lr_decay_iters or training.train_iters,
        lr_decay_style=training.lr_decay_style,
        start_wd=training.weight_decay,
        end_wd=training.weight_decay,
        wd_incr_steps=0,
        wd_incr_style="constant",
        # A resumed run follows the flags it is given, not those the checkpoint was made with.
        use_checkpoint_opt_param_scheduler=False,
        override_opt_param_scheduler=True,
    )


@torch.no_grad()
def apply_gradients(optimizer: MegatronOptimizer, clip_grad: float) -> tuple[bool, float]:
    """Clip and update, unless the gradient norm is not finite: then nothing changes.

    All ranks agree on that: a device that fails may break the gradient of one replica alone.

    Returns:
        Whether weights were updated, on all ranks or on none, and the gradient norm before
        clipping, of this replica.
    """
    optimizer.prepare_grads()
    norm = float(optimizer.get_grad_norm())
    updated = not is_anywhere(not math.isfinite(norm))
    if updated:
        parameters: list[Any] = optimizer.get_parameters()
        if clip_grad > 0 and parameters:
            clip_grads.clip_grad_by_total_norm_fp32(parameters, max_norm=clip_grad, total_norm=norm)
        updated = bool(optimizer.step_with_ready_grads())
    # `prepare_grads` made `grad` an alias of the gradient buffer. Left there, the next backward
    # would add its first micro-batch to the buffer twice.
    optimizer.zero_grad()
    return updated, norm


def learning_rate(optimizer: MegatronOptimizer) -> float:
    """Return the learning rate that the last step used."""
    return max((float(group["lr"]) for group in optimizer.param_groups), default=math.nan)
