"""Every change made to megatron-core, each with its reason and the versions that need it.

Whether a change is made is asked of what is there, not of a version number: this is the table.
What a CPU needs beyond these stands in ``runtime.mcore_cpu``, which versions are accepted in
``runtime.versions``.

==========================  ========  ==========================================================
adaptation                  versions  reason
==========================  ========  ==========================================================
``_use_group_step_adam``    all       without Apex or Transformer Engine, a resumed Adam is
                                      silently wrong; from 0.17 on it is given ``capturable``
``_save_without_manager``   all       the spawned manager re-runs the main script at the first
                                      save
``_end_writers_with_rank``  0.16      a rank killed while it saves leaves writers that wait for
                                      ever; from 0.17 on threads write, which end with it
``_disable_memory_probe``   all       without psutil the writer dies: in 0.16 the save hangs
``_recompute_without_fp8``  all       selective recompute of norms fails where TE is missing
==========================  ========  ==========================================================
"""

import functools
import importlib
import inspect
import queue
import sys
from pathlib import Path
from typing import Any

import torch

from megatron_aia.runtime.adam import GroupStepAdamW
from megatron_aia.runtime.device import has_cuda, has_weight_gradient_kernel
from megatron_aia.runtime.mcore_cpu import adapt_to_cpu
from megatron_aia.runtime.processes import follow_parent
from megatron_aia.runtime.versions import check_versions

# Modules that megatron-core imports lazily; they must exist before they can be adapted.
_LAZY_MODULES = (
    "megatron.core.dist_checkpointing.exchange_utils",
    "megatron.core.dist_checkpointing.strategies.filesystem_async",
    "megatron.core.dist_checkpointing.strategies.fully_parallel",
    "megatron.core.dist_checkpointing.strategies.state_dict_saver",
    "megatron.core.dist_checkpointing.strategies.torch",
    "megatron.core.distributed.finalize_model_grads",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.core.models.gpt.gpt_model",
    "megatron.core.optimizer.distrib_optimizer",
    "megatron.core.optimizer_param_scheduler",
    "megatron.core.pipeline_parallel.schedules",
    "megatron.core.tensor_parallel.random",
)
_installed = False


def install() -> None:
    """Adapt megatron-core to this machine, before a model is built. Further calls do nothing.

    Raises:
        ValueError: this version of megatron-core is not supported.
    """
    global _installed
    if _installed:
        return
    check_versions()
    for name in _LAZY_MODULES:
        importlib.import_module(name)
    _use_group_step_adam()
    _save_without_manager()
    _end_writers_with_rank()
    _disable_memory_probe()
    _recompute_without_fp8()
    adapt_to_cpu()
    _installed = True


def _use_group_step_adam() -> None:
    optimizer: Any = sys.modules["megatron.core.optimizer"]
    distributed: Any = sys.modules["megatron.core.optimizer.distrib_optimizer"]
    if not optimizer.USING_PYTORCH_OPTIMIZER:
        return
    optimizer.Adam = distributed.Adam = GroupStepAdamW
    optimizer.USING_PYTORCH_OPTIMIZER = False
    # GroupStepAdamW keeps its state where Apex keeps it, so Apex's branch is the right one.
    distributed.HAVE_APEX_OR_TE = True
    distributed.USING_APEX_OPTIMIZER = True


def _save_without_manager() -> None:
    module: Any = sys.modules["megatron.core.dist_checkpointing.strategies.filesystem_async"]
    module._results_queue = queue.Queue()


def _end_writers_with_rank() -> None:
    module: Any = sys.modules["megatron.core.dist_checkpointing.strategies.filesystem_async"]
    cls = module.FileSystemWriterAsync
    if not hasattr(cls, "write_preloaded_data_multiproc"):
        return  # threads of the rank write, and the rank itself
    original = cls.write_preloaded_data

    @functools.wraps(original)
    def write(*args: Any, **kwargs: Any) -> None:
        follow_parent()
        original(*args, **kwargs)

    cls.write_preloaded_data = staticmethod(write)


def _disable_memory_probe() -> None:
    module: Any = sys.modules["megatron.core.dist_checkpointing.strategies.filesystem_async"]
    if not module.HAVE_PSUTIL:
        module._process_memory = lambda: 0


def _recompute_without_fp8() -> None:
    module: Any = sys.modules["megatron.core.tensor_parallel.random"]
    if module.HAVE_TE:
        return
    cls = module.CheckpointWithoutOutput
    original = cls.__init__

    @functools.wraps(original)
    def init(self: Any, fp8: Any = None) -> None:
        original(self, fp8 or None)

    cls.__init__ = init


def plan_save(content: dict[str, Any], folder: Path, strategy: Any) -> Any:
    """Let megatron-core plan a save; return its ``AsyncRequest``: what to write, and to do then.

    Every rank calls this. From 0.17 on its own writers are one of two choices.

    Args:
        content: sharded state.
        folder: empty, of the checkpoint.
        strategy: to save by.
    """
    from megatron.core import dist_checkpointing

    choice = {"async_strategy": "mcore"}
    has_choice = "async_strategy" in inspect.signature(dist_checkpointing.save).parameters
    return dist_checkpointing.save(
        content, str(folder), strategy, async_sharded_save=True, **(choice if has_choice else {})
    )


def transformer_options(interleaved: bool) -> dict[str, Any]:
    """Return the ``TransformerConfig`` arguments that depend on the machine.

    Args:
        interleaved: the pipeline schedule interleaves model chunks.
    """
    cuda = has_cuda()
    return {
        # An interleaved schedule sends while it computes, and gloo reads the freed memory.
        "deallocate_pipeline_outputs": cuda or not interleaved,
        # A model on the meta device must not get storage on the GPU.
        "use_cpu_initialization": not cuda or torch.get_default_device().type == "meta",
        "gradient_accumulation_fusion": cuda and has_weight_gradient_kernel(),
        "masked_softmax_fusion": False,
        "bias_dropout_fusion": cuda,
        "bias_activation_fusion": False,
        # The fused kernels count positions along the sequence; ours restart with every sample.
        "apply_rope_fusion": False,
        "persist_layer_norm": False,
        "batch_p2p_sync": cuda,
    }


def decoder_options(interleaved: bool, bf16: bool) -> dict[str, Any]:
    """Return :func:`transformer_options` of a decoder with SwiGLU and a vocabulary.

    Args:
        interleaved: the pipeline schedule interleaves model chunks.
        bf16: activations are bfloat16.
    """
    return {
        **transformer_options(interleaved),
        # SwiGLU as one kernel, which also keeps one tensor fewer for backward.
        "bias_activation_fusion": has_cuda(),
        # The fused one rounds the gradient of the logits to bfloat16, whatever their precision.
        "cross_entropy_loss_fusion": has_cuda() and bf16,
    }
