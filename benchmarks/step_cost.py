"""What the intensities cost in a whole optimizer step: time, memory, and how busy the machine is.

    python benchmarks/step_cost.py

One process, one model of Emu3's shape. In every round the same micro-batch goes through forward,
backward and update without AIA, again without, and with every method, one after the other; a ratio
is the median over rounds of a step's time over that of the first in the same round. Without AIA the
attention is the same flash kernel, measuring nothing. On a GPU with Transformer Engine a second
model multiplies in FP8 (``--fp8``), a third attends in FP8 too.

On a CPU the time is CPU time of one thread. Memory is the peak above what is held between steps.
"""

import argparse
import statistics
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from attention_sides.layer import SHAPES
from attention_sides.measure import ceiling, peak_bytes, seconds
from attention_sides.report import processor

from megatron_aia.aia.profile import load_profile
from megatron_aia.aia.roles import Segment
from megatron_aia.attention.core_attention import AIACoreAttention
from megatron_aia.attention.methods import Method
from megatron_aia.config import Config
from megatron_aia.data.batch import MicroBatch
from megatron_aia.data.targets import NEXT_TOKEN, BatchTarget
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.runtime.device import describe, device, has_cuda, has_transformer_engine
from megatron_aia.runtime.parallel import Parallel, create_parallel, initialize_process_group
from megatron_aia.training.optimizer import apply_gradients, build_optimizer
from megatron_aia.training.setup import build_models
from megatron_aia.training.step import run_step

TEXT_SIZE, CODEBOOK_SIZE = 8192, 8192
FP8: dict[str, dict[str, Any]] = {
    "bf16": {},
    "FP8 products": {"fp8_format": "hybrid"},
    "FP8 products and attention": {"fp8_format": "hybrid", "fp8_dot_product_attention": True},
}


def make_config(options: argparse.Namespace, precision: str) -> Config:
    preset = preset_table()["emu3_8b"].build()
    model = replace(
        preset.model,
        num_layers=options.layers,
        hidden_size=options.hidden_size,
        ffn_hidden_size=options.hidden_size * 7 // 2,
        num_attention_heads=options.hidden_size // 128,
        num_query_groups=options.hidden_size // 128 // options.heads_a_group,
        kv_channels=128,
        text_vocab_size=TEXT_SIZE,
        codebook_size=CODEBOOK_SIZE,
        max_position_embeddings=options.length,
    )
    training = replace(preset.training, bf16=has_cuda(), **FP8[precision])
    parallel = replace(
        preset.parallel,
        tensor_model_parallel_size=1,
        pipeline_model_parallel_size=1,
        sequence_parallel=False,
        use_distributed_optimizer=False,
        recompute_granularity=None,
    )
    packing = options.shape == "packed"
    data = replace(preset.data, seq_length=options.length, packing=packing)
    return replace(preset, model=model, training=training, parallel=parallel, data=data)


def make_batch(segments: tuple[Segment, ...], length: int) -> MicroBatch:
    """Return random tokens, every one of them a label, in a row of these samples."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(TEXT_SIZE, (1, length), generator=generator)
    sizes = [segment.stop - segment.start for segment in segments]
    tasks = tuple(int(segment.terms[0].task) for segment in segments)
    return MicroBatch(
        tokens=tokens,
        position_ids=torch.cat([torch.arange(size) for size in sizes])[None],
        segment_ids=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes))[None],
        segments=segments,
        tasks=tasks,
        targets={
            NEXT_TOKEN: BatchTarget(
                positions=torch.arange(length),
                values=tokens.roll(-1, 1).flatten(),
                weights=torch.ones(length),
                tasks=torch.from_numpy(np.repeat(tasks, sizes)),
                samples=torch.from_numpy(np.repeat(np.arange(len(sizes)), sizes)),
            )
        },
    )


def one_process(options: argparse.Namespace) -> Parallel:
    """Make the groups of a single process; once, whatever the number of models."""
    initialize_process_group(10)
    return create_parallel(make_config(options, "bf16").parallel, options.layers, seed=1)


class Side:
    """A model with its optimizer, and the steps that are compared on it."""

    def __init__(self, options: argparse.Namespace, precision: str, parallel: Parallel) -> None:
        self.config = make_config(options, precision)
        self.parallel = parallel
        self.spec = load_model_spec("emu3")
        self.models = build_models(self.config, self.spec, self.parallel)
        self.optimizer = build_optimizer(self.config, self.models, self.parallel)
        attentions = [m for m in self.models[0].modules() if isinstance(m, AIACoreAttention)]
        self.own = attentions[0].method if attentions else None
        """What the run has chosen; None where Transformer Engine attends."""
        self.batch = make_batch(tuple(SHAPES[options.shape](options.length)), options.length)
        self.targets = load_profile("paper").resolve(options.layers, "stage")

    def steps(self, sampled_queries: int) -> dict[str, Callable[[], None]]:
        """Return what runs in a round, in order."""
        found: dict[str, Callable[[], None]] = {"AIA off": partial(self.step, None, False)}
        if self.config.training.fp8_dot_product_attention:
            return {"AIA, sampled": partial(self.step, None, True)}
        found["AIA off again"] = found["AIA off"]
        for name in ("flash", "sampled"):
            # On the kernel that the run has chosen, as with AIA off.
            method = replace(self.own, name=name, sampled_queries=sampled_queries)
            found[f"AIA, {name} on {method.backend}"] = partial(self.step, method, True)
        return found

    def step(self, method: Method | None, measures: bool) -> None:
        if self.own is not None:
            self._attend_by(method or self.own)
        targets = self.targets if measures else None
        run_step(
            self.models,
            self.spec,
            self.spec.losses(self.config),
            self.config,
            self.parallel,
            [self.batch],
            targets,
        )
        apply_gradients(self.optimizer, self.config.training.clip_grad)

    def _attend_by(self, method: Method) -> None:
        for module in self.models[0].modules():
            if isinstance(module, AIACoreAttention):
                module.method, module.attend = method, method.build(module.layer, 0)

    @property
    def operations(self) -> float:
        """Multiplications and additions of a step without AIA, nothing computed twice."""
        model = self.config.model
        lengths = [segment.stop - segment.start for segment in self.batch.segments]
        pairs = sum(n * n for n in lengths)
        attention = 7 * model.num_attention_heads * model.head_size * pairs * model.num_layers
        embedding = TEXT_SIZE + CODEBOOK_SIZE
        weights = sum(p.numel() for p in self.models[0].parameters())
        # Looking a token up multiplies nothing.
        return 6.0 * (weights - embedding * model.hidden_size) * sum(lengths) + attention


def main() -> None:
    on_gpu = has_cuda()
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=SHAPES, default="generation")
    parser.add_argument("--length", type=int, default=8192 if on_gpu else 4096)
    parser.add_argument("--layers", type=int, default=8 if on_gpu else 2)
    parser.add_argument("--hidden-size", type=int, default=4096 if on_gpu else 512)
    parser.add_argument("--heads-a-group", type=int, default=4, help="1 is Janus-Pro's")
    parser.add_argument("--sampled-queries", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=20 if on_gpu else 5)
    parser.add_argument("--fp8", action="store_true", help="compare with FP8 on the same GPU")
    options = parser.parse_args()
    if options.fp8 and not has_transformer_engine():
        parser.error("--fp8 needs a GPU and Transformer Engine")
    torch.set_num_threads(1)
    parallel = one_process(options)
    precisions = list(FP8) if options.fp8 and options.shape != "packed" else ["bf16"]
    sides = {name: Side(options, name, parallel) for name in precisions}
    print(f"{describe()}, {processor()}; {vars(options)}")
    report(sides, options)


def report(sides: dict[str, Side], options: argparse.Namespace) -> None:
    steps = {
        f"{step}, {precision}" if options.fp8 else step: run
        for precision, side in sides.items()
        for step, run in side.steps(options.sampled_queries).items()
    }
    for run in steps.values():
        run()  # the first step makes the optimizer's state
    memory = {name: peak_bytes(run) for name, run in steps.items()}
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(options.rounds):
        for name, run in steps.items():
            times[name].append(seconds(run))
    first = next(iter(steps))
    top = ceiling(torch.bfloat16 if has_cuda() else torch.float32)
    operations = sides["bf16"].operations
    weights = sum(p.numel() for p in sides["bf16"].models[0].parameters())
    held = torch.cuda.memory_allocated() / 2**20 if has_cuda() else weights * 16 / 2**20
    print(f"{weights:,} weights, {held:,.0f} MiB held between steps on {device()}")
    print(f"ceiling {top / 1e12:.3g} TFLOP/s for a matrix product\n")
    print("| step | seconds | time | peak MiB | held + peak | of the ceiling |")
    print("|---|---|---|---|---|---|")
    for name in steps:
        pairs = zip(times[name], times[first], strict=True)
        ratios = sorted(a / b for a, b in pairs)
        middle = statistics.median(times[name])
        total = (held * 2**20 + memory[name]) / (held * 2**20 + memory[first])
        print(
            f"| {name} | {middle:.3f} | {statistics.median(ratios):.3f} "
            f"({ratios[0]:.3f} to {ratios[-1]:.3f}) | {memory[name] / 2**20:,.0f} "
            f"| {total:.3f} | {operations / middle / top:.0%} |"
        )


if __name__ == "__main__":
    main()
