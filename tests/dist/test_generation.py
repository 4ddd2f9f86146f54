"""What the models draw and answer is what Transformers draws and answers, in every layout."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import decode_golden as golden
from support.decode_golden import save
from support.spawn import spawn
from support.tools import import_hf
from support.writing import (
    DRAWINGS,
    DRAWN,
    EMU3_CHAT,
    JANUS_CHAT,
    PICTURE,
    QUESTIONS,
    SmallTokenizer,
    emu3_drawing,
    layout,
    write_each,
)
from support.writing_mistakes import MISTAKES

from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.generation.decoder import Decoder
from megatron_aia.generation.drawing import Guidance, draw_pictures
from megatron_aia.generation.load import inference_config, open_writer
from megatron_aia.generation.sampling import row_key
from megatron_aia.models import load_model_spec
from megatron_aia.models.inference import FREE

pytestmark = pytest.mark.versions
transformers = pytest.importorskip("transformers")

LAYOUTS: dict[int, dict[str, Any]] = {
    1: {"one process": layout()},
    2: {
        "TP 2": layout(tensor_model_parallel_size=2),
        "TP 2, trained with SP": layout(tensor_model_parallel_size=2, sequence_parallel=True),
        "PP 2": layout(pipeline_model_parallel_size=2),
        "PP 2 x VPP 2": layout(
            pipeline_model_parallel_size=2, num_layers_per_virtual_pipeline_stage=1
        ),
        "CP 2": layout(context_parallel_size=2),
        "DP 2": layout(),
    },
    4: {
        "TP 2 x PP 2": layout(tensor_model_parallel_size=2, pipeline_model_parallel_size=2),
    },
}
NAMES = [name for group in LAYOUTS.values() for name in group]
FAMILIES = ["emu3", "janus_pro"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    found = {}
    for family, model in (("emu3", golden.emu3()), ("janus_pro", golden.janus())):
        source = save(model, root / f"{family}_hf")
        code, _, error = spawn(import_hf, 1, source, root / family)
        assert code == 0, error
        found[family] = root / family
    return found


@pytest.fixture(scope="module")
def written(checkpoints: dict[str, Path]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {family: {} for family in FAMILIES}
    for world_size, layouts in LAYOUTS.items():
        for family, results in spawn(write_each, world_size, checkpoints, layouts).items():
            found[family] |= results
    return found


def emu3_by_transformers(model: Any, number: int, scale: float) -> list[int]:
    """Draw by ``generate``, with the authors' guidance and their rule for the grid."""
    generation = transformers.generation
    drawing = DRAWINGS["emu3"][number]
    start = len(drawing.prompt)

    def allowed(batch: int, ids: torch.Tensor) -> list[int]:
        forced = int(drawing.plan[len(ids) - start])
        return list(range(golden.FIRST, golden.EMU3_SIZE)) if forced == FREE else [forced]

    processors = [generation.PrefixConstrainedLogitsProcessor(allowed, num_beams=1)]
    if scale != 1:
        negative = torch.tensor(drawing.unguided)[None]
        guide = generation.UnbatchedClassifierFreeGuidanceLogitsProcessor
        processors.insert(0, guide(scale, model, unconditional_ids=negative))
    ids = torch.tensor(drawing.prompt)[None]
    drawn = model.generate(
        ids,
        transformers.GenerationConfig(
            eos_token_id=golden.EOS,
            pad_token_id=golden.PAD,
            max_new_tokens=len(drawing.plan),
            do_sample=False,
        ),
        logits_processor=generation.LogitsProcessorList(processors),
        attention_mask=torch.ones_like(ids),
    )
    return drawn[0, start:].tolist()


def janus_options(**more: Any) -> Any:
    return transformers.GenerationConfig(
        bos_token_id=golden.J_BOS,
        eos_token_id=golden.J_EOS,
        pad_token_id=golden.J_PAD,
        generation_kwargs={"boi_token_id": golden.J_BOI},
        do_sample=False,
        **more,
    )


def janus_by_transformers(model: Any, number: int, scale: float) -> list[int]:
    ids = torch.tensor(DRAWINGS["janus_pro"][number].prompt)[None]
    codes = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_mode="image",
        generation_config=janus_options(guidance_scale=scale),
    )
    return (codes[0] + golden.JANUS_TEXT).tolist()


def test_emu3_draws_what_transformers_draws(written: Any) -> None:
    """Three prompts in one batch, aligned at the right, against each of them alone."""
    model, ours = golden.emu3(), written["emu3"]["one process"]
    for name, scale in (("greedy", 1.0), ("guided", 3.0)):
        assert ours[name] == [emu3_by_transformers(model, i, scale) for i in range(3)]
    kept = [262, 257, 266, 263, 243, 258, 263, 258, 260, 243, 251, 254, 263, 251, 243]
    assert ours["greedy"][0] == [*kept, 244, 250, 247]
    kept = [260, 263, 263, 263, 243, 258, 257, 264, 251, 243, 264, 266, 256, 265, 243]
    assert ours["guided"][0] == [*kept, 244, 250, 247]


def test_janus_draws_what_transformers_draws(written: Any) -> None:
    model, ours = golden.janus(), written["janus_pro"]["one process"]
    assert ours["guided"] == [janus_by_transformers(model, i, 5) for i in range(3)]
    codes = [[i - golden.JANUS_TEXT for i in row] for row in ours["guided"]]
    assert codes[:2] == [[7, 12, 12, 12, 12, 1, 9, 9, 9], [8, 8, 8, 8, 9, 8, 9, 9, 9]]


def test_answers_are_those_of_transformers(written: Any) -> None:
    ours = written["emu3"]["one process"]["answers"]
    config = transformers.GenerationConfig(
        eos_token_id=golden.EOS, pad_token_id=golden.PAD, max_new_tokens=8, do_sample=False
    )
    model = golden.emu3()
    for question, found in zip(QUESTIONS["emu3"], ours, strict=True):
        ids = torch.tensor(question.prompt)[None]
        assert model.generate(ids, config)[0, len(question.prompt) :].tolist() == found
    assert ours[0] == [155, 155, 155, 155, 155, 189, 8, 56]
    assert QUESTIONS["emu3"][0].prompt.tolist() == EMU3_CHAT


def test_answers_about_a_picture_are_those_of_transformers(written: Any) -> None:
    ours = written["janus_pro"]["one process"]["answers"]
    model = golden.janus()
    for question, found in zip(QUESTIONS["janus_pro"], ours, strict=True):
        ids = torch.tensor(question.prompt)[None]
        ids = ids.where(ids != golden.SLOT, golden.J_IMAGE)
        pixels = {"pixel_values": (PICTURE.float()[None] / 255 - 0.5) / 0.5}
        output = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            **(pixels if question.images else {}),
            generation_config=janus_options(max_new_tokens=8),
        )
        assert output[0, ids.shape[1] :].tolist() == found
    assert ours[1] == [40, 17, 44, 17, 18, 17, 18, 4]
    assert QUESTIONS["janus_pro"][1].prompt.tolist() == JANUS_CHAT


@pytest.mark.parametrize("name", NAMES[1:])
@pytest.mark.parametrize("family", FAMILIES)
def test_one_picture_and_one_answer_in_every_layout(written: Any, family: str, name: str) -> None:
    assert written[family][name] == written[family]["one process"]


def test_rows_differ_and_draws_are_no_maxima(written: Any) -> None:
    """Otherwise the comparisons above would say little."""
    for family in FAMILIES:
        ours = written[family]["one process"]
        assert len({tuple(row) for name in ("greedy", "guided", "drawn") for row in ours[name]}) > 6
        assert ours["answers"] != ours["drawn answers"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", MISTAKES)
def test_a_planted_mistake_is_seen(
    name: str, family: str, written: Any, checkpoints: dict[str, Path]
) -> None:
    world_size, mistake = MISTAKES[name]
    sizes = {name: layout(tensor_model_parallel_size=world_size)}
    found = spawn(write_each, world_size, {family: checkpoints[family]}, sizes, mistake)
    assert found[family][name] != written[family]["one process"]


def uncached(checkpoint: Path) -> float:
    """Return how far logits of a batch that is written token by token are from those of whole
    rows.
    """
    config = inference_config(find_checkpoint(checkpoint), layout(), False)
    family = config.model.model
    make = load_model_spec(family).inference
    assert make is not None
    inference = make(config, SmallTokenizer(40 if family == "emu3" else 60))
    prompts = [drawing.prompt for drawing in DRAWINGS[family]]
    rng = np.random.default_rng(0)
    more = rng.integers(inference.code_ids.start, inference.code_ids.stop, (len(prompts), 5))
    worst = 0.0
    with open_writer(checkpoint, config) as writer:
        model = (writer.chunks, inference, writer.parallel)

        def last_logits(rows: list[np.ndarray]) -> torch.Tensor:
            hidden = Decoder(*model, rows, 0).read_prompts()
            return inference.code_logits(writer.chunks[-1], hidden)

        decoder = Decoder(*model, prompts, 5)
        places = decoder.send_places(torch.from_numpy(more[:, :1]))
        hidden = decoder.read_prompts()
        for step in range(6):
            whole = [np.append(row, more[i, :step]) for i, row in enumerate(prompts)]
            alone = torch.cat([last_logits([row]) for row in whole])
            cached = inference.code_logits(writer.chunks[-1], hidden)
            worst = max(worst, float((cached - alone).abs().max() / alone.std()))
            if step < 5:
                hidden = decoder.feed(torch.from_numpy(more[:, step : step + 1]), places)
    return worst


@pytest.mark.parametrize("family", FAMILIES)
def test_kept_keys_give_the_logits_of_whole_rows(family: str, checkpoints: dict[str, Path]) -> None:
    assert spawn(uncached, 1, checkpoints[family]) < 1e-5


def drawn_in_batches(checkpoint: Path) -> list[list[list[int]]]:
    """Return three pictures of two shapes, drawn together and one by one."""
    config = inference_config(find_checkpoint(checkpoint), layout(), False)
    make = load_model_spec("emu3").inference
    assert make is not None
    inference = make(config, SmallTokenizer(40))
    drawings = [emu3_drawing([5, 7], [6], 4), emu3_drawing([3], [6, 9], 2), DRAWINGS["emu3"][2]]
    keys = [row_key("a picture", number) for number in range(3)]
    guidance = Guidance(2.0, DRAWN)
    with open_writer(checkpoint, config) as writer:
        model = (writer.chunks, inference, writer.parallel)
        together = draw_pictures(*model, drawings, keys, guidance)
        alone = [
            draw_pictures(*model, [drawing], [key], guidance)[0]
            for drawing, key in zip(drawings, keys, strict=True)
        ]
    return [[row.tolist() for row in rows] for rows in (together, alone)]


def test_pictures_of_two_shapes_share_a_batch(checkpoints: dict[str, Path]) -> None:
    together, alone = spawn(drawn_in_batches, 1, checkpoints["emu3"])
    assert together == alone
    assert [len(row) for row in together] == [3 * 5 + 3, 3 * 3 + 3, 3 * 5 + 3]
    assert together[1][2::3][:3] == [golden.EOL] * 3
