"""Which parameters are trained."""

from collections.abc import Sequence
from fnmatch import fnmatchcase

import torch.distributed as dist

from megatron_aia.models.backbone import PackedGPTModel
from megatron_aia.models.initialize import global_parameters
from megatron_aia.runtime.parallel import Parallel


def freeze_parameters(
    chunks: Sequence[PackedGPTModel], patterns: Sequence[str], parallel: Parallel
) -> None:
    """Take parameters out of training, before gradients and optimizer state are laid out.

    Every rank calls this together.

    Args:
        chunks: model chunks of this process.
        patterns: shell patterns of names, with layers counted over the whole model.
        parallel: of the run.

    Raises:
        ValueError: on every rank, if a pattern fits no parameter of the whole model, or if a
            pipeline stage would have nothing to train.
    """
    if not patterns:
        return
    names, used, num_trained = set(), set(), 0
    for chunk in chunks:
        for name, parameter in global_parameters(chunk):
            fitting = {pattern for pattern in patterns if fnmatchcase(name, pattern)}
            # What a model never trains, as the codebook of an image tokeniser, stays so.
            parameter.requires_grad_(parameter.requires_grad and not fitting)
            names.add(name)
            used |= fitting
            num_trained += parameter.requires_grad
    everywhere: list[tuple[set[str], set[str], int]] = [(set(), set(), 0)] * dist.get_world_size()
    dist.all_gather_object(everywhere, (names, used, num_trained), group=parallel.control)
    used_anywhere = set().union(*(part[1] for part in everywhere))
    for pattern in patterns:
        if pattern not in used_anywhere:
            known = sorted(set().union(*(part[0] for part in everywhere)))
            raise ValueError(
                f"--freeze {pattern} fits no parameter; names begin with "
                f"{', '.join(sorted({name.split('.')[0] for name in known}))}"
            )
    if not all(count for _, _, count in everywhere):
        raise ValueError(
            f"--freeze {' '.join(patterns)} leaves a pipeline stage nothing to train; freeze less, "
            "or lower --pipeline-model-parallel-size"
        )
