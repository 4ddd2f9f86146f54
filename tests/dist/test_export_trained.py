"""A trained checkpoint, exported, is in Transformers the model that was trained."""

import json
import runpy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from support.hugging_face import read_tensors
from support.layouts import Layout, predict_every_token
from support.runs import run_config, train, write_dataset
from support.spawn import spawn

from megatron_aia.aia.inject import AIAContext
from megatron_aia.aia.roles import Task
from megatron_aia.checkpoint.run_state import read_state
from megatron_aia.config import Config
from megatron_aia.data.targets import NEXT_TOKEN
from megatron_aia.runtime.parallel import destroy_parallel
from megatron_aia.training.trainer import Trainer

transformers = pytest.importorskip("transformers")

FOUR = Layout({"tensor_model_parallel_size": 2, "pipeline_model_parallel_size": 2})
ONE = Layout()
# A step is one period of the task ratio, 2:2:1:1; the first epoch of the data is four of them.
STEPS, SAMPLES = 3, 6
TOLERANCE = 1e-5


@dataclass(frozen=True)
class TokenLosses:
    """A sample and this project's negative log-likelihood of each token but the first."""

    task: Task
    tokens: torch.Tensor
    weights: torch.Tensor
    nll: torch.Tensor


def configure(data: Path, layout: Layout, **checkpoint: Any) -> Config:
    """Return a run whose rotary base and epsilon are nobody's default: both must be exported."""
    config = run_config(data, layout, STEPS + 1, **checkpoint)
    return replace(
        config,
        model=replace(config.model, rotary_base=12_345, norm_epsilon=1e-3),
        data=replace(config.data, global_batch_size=SAMPLES),
        training=replace(config.training, lr=1e-2, min_lr=1e-2),
    )


def measure_all(configs: list[Config]) -> list[list[TokenLosses]]:
    return [measure(config) for config in configs]


def measure(config: Config) -> list[TokenLosses]:
    """Run the weights that a run starts from on the samples of the step after ``STEPS``."""
    trainer = Trainer(config)
    first = STEPS * SAMPLES
    drawn = [trainer.data.mixture.locate(position) for position in range(first + SAMPLES)]
    unlike = {(address.index_number, address.sample_number) for address in drawn}
    assert len(unlike) == len(drawn), "the samples were trained on"
    losses = []
    for batch in trainer.data.step(first):
        aia = AIAContext(batch.segments, None, config.model.num_attention_heads)
        with torch.no_grad():
            rows = trainer.spec.forward(trainer.models[0], predict_every_token(batch), aia)["nll"]
        weights = torch.zeros(batch.tokens.shape)
        target = batch.targets[NEXT_TOKEN]
        weights.view(-1)[target.positions] = target.weights
        for segment, task in zip(batch.segments, batch.tasks, strict=True):
            row, start, stop = segment.batch_index, segment.start, segment.stop
            parts = (batch.tokens[row, start:stop], weights[row, start : stop - 1])
            losses.append(TokenLosses(Task(task), *parts, rows[row, start : stop - 1]))
    del trainer
    destroy_parallel()
    return losses


def loss_by_task(losses: list[TokenLosses]) -> dict[Task, float]:
    """Return the mean over the labels of each task, as the log has it."""
    total, weight = dict.fromkeys(Task, 0.0), dict.fromkeys(Task, 0.0)
    for sample in losses:
        total[sample.task] += float((sample.weights.double() * sample.nll).sum())
        weight[sample.task] += float(sample.weights.sum())
    return {task: total[task] / weight[task] for task in Task}


def export_all(run: Path, folder: Path) -> list[int]:
    """Run the tool for each layout and return its exit codes."""
    tool = runpy.run_path(str(Path(__file__).parents[2] / "tools" / "convert_megatron_to_hf.py"))
    flags = ("--load", str(run), "--hf-layout")
    return [tool["main"]([*flags, layout, "--save", str(folder / layout)]) for layout in LOADERS]


def load_transformers(folder: Path) -> Any:
    model, info = transformers.Emu3ForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    return model


def load_original(folder: Path) -> Any:
    """Fill Transformers' text model, whose names are the same: it has no class for this layout."""
    config = transformers.Emu3TextConfig.from_dict(json.loads((folder / "config.json").read_text()))
    model = transformers.Emu3ForCausalLM(config)
    model.load_state_dict(read_tensors(folder))
    return model


LOADERS = {"transformers": load_transformers, "original": load_original}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with both exports, the run's log, losses by its checkpoint and by fresh weights."""
    folder = tmp_path_factory.mktemp("trained")
    data = write_dataset(folder / "data")
    run = configure(data, FOUR, save=str(folder / "run"), save_interval=STEPS)
    records = spawn(train, 4, run)
    checkpoint = folder / "run" / f"iter_{STEPS:07d}"
    starts = [configure(data, ONE, load=str(checkpoint)), configure(data, ONE)]
    losses, fresh = spawn(measure_all, 1, starts)
    assert spawn(export_all, 1, checkpoint, folder) == [0, 0]
    return folder, records, losses, fresh


def test_the_checkpoint_is_of_a_run_that_learned(trained: Any) -> None:
    folder, records, losses, fresh = trained
    assert read_state(folder / "run" / f"iter_{STEPS:07d}").optimizer == "replicated"
    before, after = loss_by_task(fresh), loss_by_task(losses)
    assert all(after[task] < before[task] - 0.1 for task in Task), (before, after)
    # The next step of the run itself: measured on the same samples before its update.
    assert records[STEPS].losses["ntp"] == pytest.approx(after, rel=TOLERANCE)


@pytest.mark.parametrize("layout", LOADERS)
def test_exported_it_gives_the_same_losses(layout: str, trained: Any) -> None:
    folder, records, losses, _ = trained
    model = LOADERS[layout](folder / layout).eval()
    theirs = []
    for sample in losses:
        with torch.no_grad():
            logits = model(input_ids=sample.tokens[None]).logits[0, :-1]
        nll = torch.nn.functional.cross_entropy(logits, sample.tokens[1:], reduction="none")
        torch.testing.assert_close(nll, sample.nll, rtol=TOLERANCE, atol=0)
        theirs.append(replace(sample, nll=nll))
    assert loss_by_task(theirs) == pytest.approx(records[STEPS].losses["ntp"], rel=TOLERANCE)
