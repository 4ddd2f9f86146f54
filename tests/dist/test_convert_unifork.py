"""UniFork from the authors' layout and back, and the numbers of the authors' own code."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

pytest.importorskip("transformers")

from support.hugging_face import read_tensors
from support.spawn import spawn
from support.tools import Result, export_hf, import_hf
from support.unifork_checkpoint import GOLDEN, IMAGE, PAD, write_unifork

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.checkpoint.run_state import architecture
from megatron_aia.checkpoint.sharded import load_weights
from megatron_aia.config import Config
from megatron_aia.config.files import with_values
from megatron_aia.generation.answering import AnswerSettings, answer_questions
from megatron_aia.generation.drawing import Guidance, draw_pictures
from megatron_aia.generation.sampling import Sampling
from megatron_aia.generation.swap import decoding
from megatron_aia.models import load_model_spec, read_run_config
from megatron_aia.models.backbone import packed_causal_mask
from megatron_aia.models.inference import FREE, Drawing, Question
from megatron_aia.models.lanes import Way
from megatron_aia.models.unifork.inference import UniForkInference
from megatron_aia.models.unifork.network import UniForkModel
from megatron_aia.models.unifork.sample_encoder import UniForkSampleEncoder
from megatron_aia.models.unifork.special_tokens import NAMES
from megatron_aia.runtime.parallel import (
    Parallel,
    create_parallel,
    destroy_parallel,
    initialize_process_group,
)

TOLERANCE = 5e-5


def convert(folder: Path) -> list[Result]:
    return [
        import_hf(folder / "hf", folder / "ours", "--verify"),
        export_hf(folder / "ours", folder / "back", "original"),
        export_hf(folder / "ours", folder / "other", "transformers"),
    ]


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Result]]:
    folder = tmp_path_factory.mktemp("unifork")
    write_unifork(folder / "hf")
    return folder, spawn(convert, 1, folder)


def test_there_and_back_is_bit_identical(converted: tuple[Path, list[Result]]) -> None:
    folder, (there, back, other) = converted
    assert there[0] == 0 and back[0] == 0, (there, back)
    before, after = read_tensors(folder / "hf"), read_tensors(folder / "back")
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        assert torch.equal(tensor, after[name]), name
    assert (folder / "back" / "vision_tower_config.json").exists()
    assert other[0] == 2 and "Transformers has no UniFork" in other[2]


def test_each_branch_equals_transformers(converted: tuple[Path, list[Result]]) -> None:
    lines = [line for line in converted[1][0][1].splitlines() if "verified" in line]
    assert [line.split()[1] for line in lines] == ["understanding", "generation"]
    for line in lines:
        assert float(line.partition("(")[2].split()[0]) < 1e-5, line


class Golden:
    """Runs the authors' inputs through a model of one process."""

    def __init__(self, model: UniForkModel) -> None:
        self.model, self.ids = model, model.vocabulary
        self.numbers = np.load(GOLDEN)
        self.images = self.ids.join_codes(torch.from_numpy(self.numbers["codes"].astype(np.int64)))

    def run(self, tokens: list[int], lane: int, labels: list[int] | None = None) -> torch.Tensor:
        row = torch.tensor([tokens])
        found: torch.Tensor = self.model(
            row,
            torch.arange(len(tokens))[None],
            packed_causal_mask(torch.zeros_like(row)),
            labels=None if labels is None else torch.tensor([labels]),
            extra_block_kwargs={"attention_bias": Way(lane)},
        )
        return found

    def understanding(self) -> tuple[torch.Tensor, float]:
        """Return the last logits of each sample, and the mean loss over labels."""
        logits, losses = [], []
        samples = zip(
            *(self.numbers["und_ids"].tolist(), self.numbers["und_labels"].tolist()),
            self.images.tolist(),
            strict=True,
        )
        for padded, padded_labels, image in samples:
            ids = [token for token in padded if token != PAD]
            at = ids.index(IMAGE)
            tokens = [*ids[:at], self.ids.begin, *image, self.ids.end, *ids[at + 1 :]]
            gap = [-1] * (len(image) + 2)
            labels = [*padded_labels[:at], *gap, *padded_labels[at + 1 : len(ids)], -1]
            labels = [max(label, -1) for label in labels[1:]]
            logits.append(self.model.text_logits(self.run(tokens, 0))[0, -6:, :96])
            found = self.run(tokens, 0, labels)[0]
            losses.append(found[torch.tensor(labels) >= 0])
        return torch.stack(logits), float(torch.cat(losses).mean())

    def generation(self) -> tuple[torch.Tensor, float]:
        """Return the logits of some image tokens of each sample, and the mean loss."""
        logits, losses = [], []
        codes = torch.from_numpy(self.numbers["codes"].astype(np.int64))
        for ids, image, code in zip(
            self.numbers["gen_ids"].tolist(), self.images, codes, strict=True
        ):
            at = ids.index(IMAGE)
            tokens = [*ids[:at], self.ids.begin, *image.tolist()]
            hidden = self.run(tokens, 1)[0, at : at + len(image)]
            logits.append(self.model.code_logits(hidden, code)[[0, 1, 128, 255], :, :40])
            labels = [-1] * at + image.tolist() + [-1]
            losses.append(self.run(tokens, 1, labels)[0, at : at + len(image)])
        return torch.stack(logits), float(torch.cat(losses).mean())


def load(folder: Path, **parallel: Any) -> tuple[Config, Any, Parallel]:
    config = read_run_config(str(find_checkpoint(folder / "ours") / "config.yaml"))
    sizes = {"tensor_model_parallel_size": 1, "pipeline_model_parallel_size": 1, "aia": False}
    config = with_values(config, {**sizes, **parallel})
    initialize_process_group(1)
    layout = create_parallel(config.parallel, config.model.num_layers, seed=1)
    model = load_model_spec("unifork").build(config, layout, 0)
    load_weights([model], folder / "ours", architecture(config.model), layout.control)
    return config, model.eval(), layout


@torch.no_grad()
def golden_differences(folder: Path) -> dict[str, float]:
    _, model, _ = load(folder)
    golden = Golden(model)
    found = {}
    for name, run in (("und", golden.understanding), ("gen", golden.generation)):
        logits, loss = run()
        expected = golden.numbers[f"{name}_logits"]
        found[f"{name}_logits"] = float(np.abs(logits.numpy() - expected).max())
        found[f"{name}_loss"] = abs(loss - float(golden.numbers[f"{name}_loss"].item()))
    destroy_parallel()
    return found


def test_the_authors_numbers(converted: tuple[Path, list[Result]]) -> None:
    found = spawn(golden_differences, 1, converted[0])
    assert max(found.values()) < TOLERANCE, found


@torch.no_grad()
def split_logits(folder: Path) -> float:
    """Return the largest difference of the image head's logits from those of one process."""
    _, whole, _ = load(folder, tensor_model_parallel_size=2)
    golden = Golden(whole)
    at = golden.numbers["gen_ids"][0].tolist().index(IMAGE)
    image, codes = golden.images[0], torch.from_numpy(golden.numbers["codes"][0].astype(np.int64))
    tokens = [*golden.numbers["gen_ids"][0].tolist()[:at], golden.ids.begin, *image.tolist()]
    hidden = golden.run(tokens, 1)[0, at : at + len(image)]
    own = whole.code_logits(hidden, codes)[[0, 1, 128, 255]]
    parts = [torch.empty_like(own) for _ in range(2)]
    dist.all_gather(parts, own.contiguous())
    logits = torch.cat(parts, dim=-1)[..., :40]
    destroy_parallel()
    return float(np.abs(logits.numpy() - golden.numbers["gen_logits"][0]).max())


def test_the_head_is_split(converted: tuple[Path, list[Result]]) -> None:
    assert spawn(split_logits, 2, converted[0]) < TOLERANCE


class NoWords:
    """A text tokeniser for prompts that are ids already."""

    vocab_size = 90
    fingerprint = "none"

    def encode(self, text: str) -> list[int]:
        return []

    def decode(self, ids: list[int]) -> str:
        return ""

    def special_id(self, name: str) -> int:
        return 90 + list(NAMES.values()).index(name)


def draw(folder: Path, **parallel: int) -> Any:
    """Draw five tokens under guidance, always the most probable codes; return their codes."""
    _, model, layout = load(folder, **parallel)
    encoder = UniForkSampleEncoder(model.vocabulary, NoWords(), grid=16)
    inference = UniForkInference(encoder, image_area=64 * 64)
    numbers = np.load(GOLDEN)
    conditional, unconditional = (
        np.array([*(i for i in ids if i != PAD), model.vocabulary.begin])
        for ids in numbers["t2i_ids"].tolist()
    )
    count = len(numbers["t2i_codes"])
    drawing = Drawing(conditional, unconditional, np.full(count, FREE), (1, count))
    with decoding([model]) as chunks:
        (ids,) = draw_pictures(
            chunks, inference, layout, [drawing], [0], Guidance(4.0, Sampling(temperature=0))
        )
    destroy_parallel()
    return inference.codes(drawing, ids)[0]


@pytest.mark.parametrize(
    "parallel", [{}, {"tensor_model_parallel_size": 2}, {"pipeline_model_parallel_size": 2}]
)
def test_guided_drawing_is_the_authors(
    converted: tuple[Path, list[Result]], parallel: dict[str, int]
) -> None:
    found = spawn(partial(draw, **parallel), 2 if parallel else 1, converted[0])
    np.testing.assert_array_equal(found, np.load(GOLDEN)["t2i_codes"])


@torch.no_grad()
def answer(folder: Path, **parallel: int) -> tuple[list[int], list[int]]:
    """Answer a question about an image; return the answer, and what whole sequences give."""
    _, model, layout = load(folder, **parallel)
    ids = model.vocabulary
    inference = UniForkInference(UniForkSampleEncoder(ids, NoWords(), grid=16), 64 * 64)
    numbers = np.load(GOLDEN)
    image = ids.join_codes(torch.from_numpy(numbers["codes"][0].astype(np.int64))).tolist()
    words = [token for token in numbers["und_ids"][0].tolist() if token != PAD]
    at = words.index(IMAGE)
    prompt = [*words[:at], ids.begin, *image, ids.end, *words[at + 1 : -2]]
    settings = AnswerSettings(max_new_tokens=6, sampling=Sampling(temperature=0))
    with decoding([model]) as chunks:
        question = Question(np.array(prompt))
        (found,) = answer_questions(chunks, inference, layout, [question], [0], settings, 1000)
    expected = list(prompt)
    if not parallel:
        golden = Golden(model)
        for _ in range(6):
            logits = model.text_logits(golden.run(expected, 0))[0, -1, :96]
            expected.append(int(logits.argmax()))
    destroy_parallel()
    return list(found.ids), expected[len(prompt) :]


def test_an_answer_goes_along_the_other_branch(converted: tuple[Path, list[Result]]) -> None:
    found, expected = spawn(answer, 1, converted[0])
    assert found == expected[: len(found)] and found
    for name in ("tensor_model_parallel_size", "pipeline_model_parallel_size"):
        assert spawn(partial(answer, **{name: 2}), 2, converted[0])[0] == found
