"""Operations are those that PyTorch counts, where a model multiplies whole maps and no padding."""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from support.layouts import Layout, tiny_batches, tiny_config
from support.spawn import spawn
from support.tiny_data import write_shards
from torch.utils.flop_counter import FlopCounterMode

from megatron_aia.aia.roles import AIATerm, Segment, Task
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.flops import aia_flops
from megatron_aia.runtime.parallel import (
    create_parallel,
    destroy_parallel,
    initialize_process_group,
)
from megatron_aia.training.setup import build_models
from megatron_aia.training.step import run_step

FROZEN = {"freeze": ("vision_model.*",)}


def counted_and_said(data: Path, family: str, training: dict[str, Any]) -> tuple[float, float]:
    """Return the operations of a step by PyTorch's counter, and by ours.

    megatron-core's attention multiplies every map whole, padding too: ours is told so.
    """
    config = tiny_config(data, Layout(family=family, aia=False), **training)
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    spec = load_model_spec(family)
    models = build_models(config, spec, parallel)
    batches = tiny_batches(config, parallel).step(0)
    with FlopCounterMode(display=False) as counter:
        run_step(models, spec, spec.losses(config), config, parallel, batches, None)
    said, model = 0.0, config.model
    for batch in batches:
        length = batch.tokens.shape[1]
        said += spec.flops(config, replace(batch, segments=(Segment(0, 0, length),)))
        # The other triangle: two products, forward and twice in backward.
        heads = model.num_layers * model.num_attention_heads * model.head_size
        said += 3 * 2 * length**2 * heads
    destroy_parallel()
    return counter.get_total_flops(), said


@pytest.mark.parametrize(
    ("family", "training", "tolerance"),
    # Padding of vocabularies is counted by PyTorch, and in Janus-Pro rows for nobody.
    [
        ("emu3", {}, 2e-3),
        ("janus_pro", {}, 0.01),
        ("janus_pro", FROZEN, 0.01),
        ("unifork", {}, 0.01),
    ],
    ids=["emu3", "janus_pro", "janus_pro, frozen tower", "unifork"],
)
def test_operations(family: str, training: Any, tolerance: float, tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data", family=family)
    counted, said = spawn(counted_and_said, 1, data, family, training)
    assert said == pytest.approx(counted, rel=tolerance)


def test_operations_of_intensities() -> None:
    """Two terms of 3 x 5 and 2 x 4 queries and keys."""
    terms = (
        AIATerm(Task.GENERATION, np.arange(5, 8), np.arange(5)),
        AIATerm(Task.UNDERSTANDING, np.arange(10, 12), np.arange(4)),
    )
    config = preset_table()["emu3_demo"].build()
    batch: Any = SimpleNamespace(segments=(Segment(0, 0, 12, terms),))
    model = config.model
    products = 4 * 2 * (15 + 8) * model.head_size
    expected = products * model.num_attention_heads * model.num_layers
    assert aia_flops(config, batch) == expected
    assert aia_flops(replace(config, aia=replace(config.aia, aia=False)), batch) == 0
