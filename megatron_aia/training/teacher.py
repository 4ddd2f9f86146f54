"""The frozen model that loss terms compare with: same layout, forward only, before each step."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from megatron.core.pipeline_parallel.schedules import get_forward_backward_func
from megatron.core.transformer.module import Float16Module

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import without_terms
from megatron_aia.checkpoint.run_state import architecture
from megatron_aia.checkpoint.sharded import load_weights
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.models.layers import uses_own_attention
from megatron_aia.models.losses import LossTerm, Outputs
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel


class Teacher:
    """A frozen model of the run's own architecture, split over the same ranks.

    Args:
        config: of the run; its ``teacher_checkpoint`` gives the weights.
        spec: of the model family.
        parallel: of the run.
        terms: of the loss.

    Raises:
        ValueError: on every rank, if no checkpoint is named, or it is damaged or of another model.
    """

    def __init__(
        self, config: Config, spec: ModelSpec, parallel: Parallel, terms: Sequence[LossTerm]
    ) -> None:
        asking = [term for term in terms if term.needs_teacher]
        folder = config.checkpoint.teacher_checkpoint
        if folder is None:
            raise ValueError(
                f"the loss term {asking[0].name} compares with a frozen teacher; name its "
                "checkpoint by --teacher-checkpoint"
            )
        self._config, self._spec, self._parallel = config, spec, parallel
        self._targets = frozenset(term.target for term in asking)
        chunks = [spec.build(config, parallel, stage) for stage in range(parallel.virtual_stages)]
        for chunk in chunks:
            chunk.requires_grad_(False).to(device()).eval()
        try:
            load_weights(
                chunks,
                Path(folder),
                architecture(config.model),
                parallel.control,
                config.checkpoint.verify_checkpoint,
            )
        except ValueError as error:
            raise ValueError(f"--teacher-checkpoint: {error}") from error
        self._chunks: list[Any] = chunks
        if config.training.bf16:
            self._chunks = [Float16Module(chunk.config, chunk).eval() for chunk in chunks]

    @torch.no_grad()
    def run(self, batches: Sequence[MicroBatch]) -> list[Outputs]:
        """Run the step's micro-batches; every rank calls this together.

        The batches hold only the targets of terms that ask for the teacher, so it computes no more
        than their outputs.

        Returns:
            Outputs by micro-batch on the last pipeline stage, empty ones elsewhere.
        """
        asked = [self._with_asked_targets(batch) for batch in batches]
        kept = get_forward_backward_func()(
            forward_step_func=partial(_forward_step, self._spec, self._aia),
            data_iterator=[iter(asked) for _ in self._chunks],
            model=self._chunks,
            num_microbatches=len(asked),
            seq_length=self._config.data.seq_length,
            micro_batch_size=self._config.data.micro_batch_size,
            forward_only=True,
            collect_non_loss_data=True,
        )
        return kept if self._parallel.is_last_stage else [{} for _ in batches]

    def _with_asked_targets(self, batch: MicroBatch) -> MicroBatch:
        targets = {name: t for name, t in batch.targets.items() if name in self._targets}
        # Places of labels are those of all targets.
        places = batch.places if len(targets) == len(batch.targets) else {}
        return replace(batch, targets=targets, places=places)

    def _aia(self, batch: MicroBatch) -> AIAContext | None:
        """Return what this project's attention needs to keep samples apart; nothing is measured."""
        if not uses_own_attention(self._config):
            return None
        return AIAContext(
            segments=without_terms(batch.segments),
            objective=None,
            num_heads=self._config.model.num_attention_heads,
            group=self._parallel.groups.tp_cp,
        )


def _forward_step(
    spec: ModelSpec, aia: Any, batches: Iterator[MicroBatch], model: torch.nn.Module
) -> tuple[torch.Tensor | Outputs, Any]:
    batch = next(batches)
    return spec.forward(model, batch, aia(batch)), _keep


def _keep(outputs: Mapping[str, torch.Tensor], non_loss_data: bool) -> Outputs:
    return {name: output.detach() for name, output in outputs.items()}
