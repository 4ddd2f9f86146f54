"""Run the same steps under one layout and bring what came out to rank 0 in full shape."""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.utils import unwrap_model

from megatron_aia.aia.profile import load_profile
from megatron_aia.config import (
    AIAConfig,
    Config,
    DataConfig,
    ModelConfig,
    ParallelConfig,
    TrainingConfig,
)
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.loader import StepLoader
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.targets import NEXT_TOKEN, BatchTarget
from megatron_aia.models import load_model_spec
from megatron_aia.models.initialize import global_parameters
from megatron_aia.models.janus_pro.settings import JanusModelConfig
from megatron_aia.models.unifork.settings import UniForkModelConfig
from megatron_aia.runtime.parallel import (
    Parallel,
    create_parallel,
    destroy_parallel,
    gather_parameters,
    initialize_process_group,
)
from megatron_aia.training.optimizer import apply_gradients, build_optimizer
from megatron_aia.training.setup import build_models, build_teacher
from megatron_aia.training.step import StepOutput, run_step
from support.spawn import spawn
from support.tiny_data import (
    CODEBOOK_SIZE,
    JANUS_GRID,
    JANUS_TEXT_SIZE,
    TEXT_VOCAB_SIZE,
    UNIFORK_DEPTH,
    ByteTokenizer,
)
from support.toy_family.family import toy

NUM_LAYERS = 4
NUM_STEPS = 3


@dataclass(frozen=True)
class Layout:
    """What may change without changing a number."""

    parallel: dict[str, Any] = field(default_factory=dict)
    micro_batch_size: int = 1
    packing: bool = True
    method: str = "auto"
    sampled_queries: int = 64
    aia: bool = True
    family: str = "emu3"
    variable_lengths: bool = False


MODELS = {
    "emu3": ModelConfig(
        num_layers=NUM_LAYERS,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        max_position_embeddings=256,
        text_vocab_size=TEXT_VOCAB_SIZE,
        codebook_size=CODEBOOK_SIZE,
        init_method_std=0.2,
        make_vocab_size_divisible_by=8,
    ),
    "janus_pro": JanusModelConfig(
        model="janus_pro",
        num_layers=NUM_LAYERS,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=4,
        max_position_embeddings=256,
        norm_epsilon=1e-6,
        rotary_base=10_000,
        text_vocab_size=JANUS_TEXT_SIZE,
        codebook_size=CODEBOOK_SIZE,
        code_channels=6,
        vision_num_layers=2,
        vision_hidden_size=16,
        vision_ffn_hidden_size=24,
        vision_num_attention_heads=2,
        image_size=8 * JANUS_GRID,
        patch_size=8,
        init_method_std=0.2,
        make_vocab_size_divisible_by=8,
    ),
    "unifork": UniForkModelConfig(
        model="unifork",
        num_layers=NUM_LAYERS,
        num_shared_layers=2,
        hidden_size=32,
        ffn_hidden_size=48,
        num_attention_heads=4,
        num_query_groups=2,
        max_position_embeddings=512,
        text_vocab_size=JANUS_TEXT_SIZE,
        codebook_size=CODEBOOK_SIZE,
        code_depth=UNIFORK_DEPTH,
        code_channels=12,
        image_size=8 * JANUS_GRID,
        patch_size=8,
        depth_num_layers=2,
        depth_attention_size=48,
        depth_num_attention_heads=4,
        depth_ffn_hidden_size=40,
        init_method_std=0.2,
        make_vocab_size_divisible_by=8,
        add_qkv_bias=True,
        untie_embeddings_and_output_weights=False,
    ),
    "toy": toy().model,
}
DATA: dict[str, dict[str, Any]] = {"unifork": {"seq_length": 384, "task_ratio": "2:2:1:0"}}
"""What the data of a family differs in: here, long templates and no mixed samples."""


@dataclass
class StepResult:
    """Numbers of the first step, and the weights after all of them."""

    losses: torch.Tensor
    aia_loss: dict[int, torch.Tensor]
    gradients: dict[str, torch.Tensor]
    grad_norms: list[float]
    weights: dict[str, torch.Tensor]


def tiny_config(data: Path, layout: Layout, **training: Any) -> Config:
    """Return a configuration of 4 layers that every layout of 4 processes divides."""
    parallel = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1}
    return Config(
        model=MODELS[layout.family],
        aia=AIAConfig(
            aia=layout.aia,
            aia_attention=layout.method,  # type: ignore[arg-type]
            aia_sampled_queries=layout.sampled_queries,
        ),
        parallel=ParallelConfig(**{**parallel, **layout.parallel}),
        data=DataConfig(
            data_path=(str(data),),
            micro_batch_size=layout.micro_batch_size,
            global_batch_size=10,
            packing=layout.packing,
            variable_seq_lengths=layout.variable_lengths,
            cfg_drop_prob=0.3,
            num_workers=0,
            **DATA.get(layout.family, {"seq_length": 256, "task_ratio": "2:2:1:1"}),
        ),
        training=TrainingConfig(lr=1e-3, min_lr=1e-3, clip_grad=1.0, **training),
    )


def tiny_batches(config: Config, parallel: Parallel) -> StepLoader:
    """Return the rows of this data-parallel rank."""
    spec = load_model_spec(config.model.model)
    return build_step_loader(
        config,
        spec.encoder(config, ByteTokenizer()),
        loads_images=parallel.has_embedding(0),
        data_rank=parallel.data_rank,
        data_size=parallel.data_size,
        micro_batch_multiple=parallel.pipeline_size if parallel.virtual_stages > 1 else 1,
    )


def predict_every_token(batch: MicroBatch) -> MicroBatch:
    """Return the micro-batch with every token but a sample's first as a label."""
    sequence_length = batch.tokens.shape[1]
    spans = [
        (segment.batch_index * sequence_length + segment.start, segment.stop - segment.start - 1)
        for segment in batch.segments
    ]
    positions = torch.cat([torch.arange(start, start + count) for start, count in spans])
    samples = torch.arange(len(spans)).repeat_interleave(torch.tensor([n for _, n in spans]))
    values = batch.tokens.flatten()[positions + 1]
    tasks = torch.tensor(batch.tasks)[samples]
    target = BatchTarget(positions, values, torch.ones(len(values)), tasks, samples)
    return replace(batch, targets={NEXT_TOKEN: target})


def run_layouts(data: Path, layouts: dict[str, Layout], **training: Any) -> dict[str, Any]:
    """Run every layout in this world, one after the other; rank 0 gets the results."""
    results = {}
    for name, layout in layouts.items():
        results[name] = run_layout(tiny_config(data, layout, **training))
    return results


def run_layout(
    config: Config, num_steps: int = NUM_STEPS, check_replicas: bool = True
) -> StepResult:
    """Run ``num_steps`` steps; every rank returns, only rank 0's result is complete."""
    initialize_process_group(config.parallel.distributed_timeout_minutes)
    parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
    spec = load_model_spec(config.model.model)
    models = build_models(config, spec, parallel)
    optimizer = build_optimizer(config, models, parallel)
    batches = tiny_batches(config, parallel)
    terms = spec.losses(config)
    teacher = build_teacher(config, spec, parallel, terms)
    targets = load_profile("paper").resolve(NUM_LAYERS, "stage") if config.aia.aia else None
    norms: list[float] = []
    for step in range(num_steps):
        position = step * config.data.global_batch_size
        rows = batches.step(position)
        output = run_step(models, spec, terms, config, parallel, rows, targets, teacher)
        if step == 0:
            losses, aia = _step_losses(output, parallel)
            gradients = gather_full(models, parallel, "main_grad", check_replicas)
        norms.append(apply_gradients(optimizer, config.training.clip_grad)[1])
    gather_parameters(models)
    weights = gather_full(models, parallel, "data", check_replicas)
    del models, optimizer
    destroy_parallel()
    return StepResult(losses, aia, gradients, norms, weights)


def _step_losses(
    output: StepOutput, parallel: Parallel
) -> tuple[torch.Tensor, dict[int, torch.Tensor]]:
    """Return the sums of the loss terms, and by layer the sorted losses of all intensities."""
    losses = output.losses.clone()
    local: dict[int, list[float]] = {}
    for aia in output.aia_contexts:
        for branch, layer in aia.measured:
            local.setdefault(layer, []).extend(aia.loss(layer, branch).tolist())
    for group in (parallel.groups.dp_cp, parallel.groups.pp):
        dist.all_reduce(losses, group=group)
    parts: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(parts, (parallel.tensor_rank, parallel.context_rank, local))
    merged: dict[int, list[float]] = {}
    for *place, part in parts:
        if place == [0, 0]:
            for layer, values in part.items():
                merged.setdefault(layer, []).extend(values)
    return losses, {k: torch.tensor(sorted(v)) for k, v in sorted(merged.items())}


def gather_full(
    models: list[Any], parallel: Parallel, attribute: str, check_replicas: bool = True
) -> dict[str, torch.Tensor]:
    """Gather parameters (or their gradients) in full shape by their global names.

    Checks that replicas are equal bit by bit: all of the weights, tensor ranks' of the gradients.
    """
    local = {}
    for model in models:
        chunk = unwrap_model(model)
        for name, parameter in global_parameters(chunk):
            if attribute == "main_grad" and not parameter.requires_grad:
                continue
            split = getattr(parameter, "partition_dim", -1)
            value = getattr(parameter, attribute).detach().float().clone()
            local[name] = (value, split, chunk.real_sizes().get(name))
    parts: list[Any] = [None] * dist.get_world_size()
    replica = (parallel.data_rank, parallel.context_rank)
    dist.all_gather_object(parts, (replica, parallel.tensor_rank, local))
    shards: dict[str, list[Any]] = {}
    first: dict[tuple[int, str], torch.Tensor] = {}
    for place, tensor_rank, part in sorted(parts, key=lambda item: item[:2]):
        for name, entry in part.items():
            if place == (0, 0):
                shards.setdefault(name, []).append(entry)
                first[tensor_rank, name] = entry[0]
            elif check_replicas and attribute == "data":
                assert torch.equal(entry[0], first[tensor_rank, name]), f"{name} of {place}"
    return {name: _join(name, entries, check_replicas) for name, entries in sorted(shards.items())}


def _join(name: str, entries: list[Any], check_replicas: bool) -> torch.Tensor:
    tensors, split, real_size = [entry[0] for entry in entries], entries[0][1], entries[0][2]
    if name.startswith("decoder.") and name.endswith("linear_fc1.weight"):
        halves = [tensor.chunk(2) for tensor in tensors]
        return torch.cat([half[0] for half in halves] + [half[1] for half in halves])
    if split < 0:
        for tensor in tensors[1:] if check_replicas else ():
            torch.testing.assert_close(
                tensor, tensors[0], rtol=0, atol=0, msg=f"replicas of {name}"
            )
        return tensors[0]
    full = torch.cat(tensors, dim=split)
    return full[:real_size]


def relative_difference(actual: StepResult, expected: StepResult) -> float:
    """Return the largest relative error over the AIA losses, the gradients and the weights."""
    pairs = [(actual.aia_loss[layer], loss) for layer, loss in expected.aia_loss.items()]
    pairs += [(actual.gradients[name], x) for name, x in expected.gradients.items()]
    pairs += [(actual.weights[name], x) for name, x in expected.weights.items()]
    errors = [torch.linalg.vector_norm((a - b).double()) / b.double().norm() for a, b in pairs]
    return max(float(error) for error in errors)


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """Return |actual - expected| / |expected| in the 2-norm."""
    difference = torch.linalg.vector_norm((actual - expected).double())
    return float(difference / torch.linalg.vector_norm(expected.double()))


class LayoutSuite:
    """Layouts by number of processes, run when the first of their group is asked for.

    Args:
        layouts: by number of processes, then by name.
        training: settings of all of them.
    """

    def __init__(self, layouts: dict[int, dict[str, Layout]], **training: Any) -> None:
        self.by_name = {
            name: layout for group in layouts.values() for name, layout in group.items()
        }
        self._layouts = layouts
        self._training = training
        self._found: dict[str, StepResult] = {}

    def result(self, name: str, shards: Path) -> StepResult:
        """Return what a layout gave on ``shards``, the same folder in every call."""
        if name not in self._found:
            ((world_size, group),) = ((w, g) for w, g in self._layouts.items() if name in g)
            self._found.update(spawn(self._run, world_size, shards, group, timeout=900))
        return self._found[name]

    def _run(self, shards: Path, group: dict[str, Layout]) -> dict[str, Any]:
        return run_layouts(shards, group, **self._training)
