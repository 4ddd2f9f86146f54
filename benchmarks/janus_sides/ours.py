"""One optimizer step of this project."""

from janus_sides.task import ROW, Losses, Sizes, make_config, make_samples, make_targets
from megatron_aia.data.batch import MicroBatch, build_micro_batch
from megatron_aia.data.packing import plan_sequences
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.models import load_model_spec
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group
from megatron_aia.training.optimizer import apply_gradients, build_optimizer
from megatron_aia.training.setup import build_models
from megatron_aia.training.step import StepOutput, run_step


class Ours:
    """This project's step: samples packed into rows, the method flash, both tasks at once."""

    def __init__(self, sizes: Sizes) -> None:
        self.config = make_config(sizes)
        initialize_process_group(1)
        layers = self.config.model.num_layers
        self.parallel = create_parallel(self.config.parallel, layers, self.config.run.seed)
        self.spec = load_model_spec("janus_pro")
        self.models = build_models(self.config, self.spec, self.parallel)
        self.optimizer = build_optimizer(self.config, self.models, self.parallel)
        self.targets = make_targets(self.config)
        self.samples = make_samples(self.config)
        self.batches = {name: self._pack(samples) for name, samples in self.samples.items()}

    def _pack(self, samples: list[TokenizedSample]) -> list[MicroBatch]:
        """Lay samples out in the shortest rows that are as few as rows of ``ROW`` would be."""
        lengths = [len(sample) for sample in samples]
        rows = plan_sequences(lengths, ROW, True, 1)
        for seq_length in range(max(lengths), ROW, 64):
            if len(plan_sequences(lengths, seq_length, True, 1)) == len(rows):
                break
        size = self.config.model.image_size
        return [
            build_micro_batch([[samples[i] for i in row]], seq_length, 0, size)
            for row in plan_sequences(lengths, seq_length, True, 1)
        ]

    def positions(self, case: str) -> int:
        return sum(batch.tokens.numel() for batch in self.batches[case])

    def step(self, case: str) -> Losses:
        batches = self.batches[case]
        output = run_step(
            self.models,
            self.spec,
            self.spec.losses(self.config),
            self.config,
            self.parallel,
            batches,
            self.targets,
        )
        _, norm = apply_gradients(self.optimizer, self.config.training.clip_grad)
        return Losses(float(output.losses[0, 0]), _weighted_term(output), norm)


def _weighted_term(output: StepOutput) -> float:
    total = 0.0
    for aia in output.aia_contexts:
        total += sum(float(aia.loss(layer).sum()) for _, layer in aia.measured)
    return total
