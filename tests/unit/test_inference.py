"""What a model is asked, token by token: as its samples are written, and as its authors ask."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.layouts import MODELS, Layout, tiny_config
from support.tiny_data import CODEBOOK_SIZE, JANUS_GRID, TEXT_VOCAB_SIZE, ByteTokenizer

from megatron_aia.attention.decoding import DecodeState
from megatron_aia.generation.questions import FilePicture
from megatron_aia.models import load_model_spec, preset_table
from megatron_aia.models.heads import columns_of_rank
from megatron_aia.models.inference import FREE, RATIOS, Inference
from megatron_aia.shards.raw_sample import Turn

TOKENIZER = ByteTokenizer()
PAD, EOL, EOF, BOS, EOS, IMG, BOI, EOI = (
    TEXT_VOCAB_SIZE + extra for extra in (0, 203, 204, 206, 207, 208, 209, 210)
)
PUBLISHED = {
    518400: "90 90 78 104 104 78 68 120 120 68 73 110 110 73",
    262144: "64 64 55 74 74 55 48 85 85 48 52 78 78 52",
}
"""Rows and columns of Emu3's authors, by area and in the order of ``RATIOS``."""


def make(family: str, system_prompt: str | None = None) -> Inference:
    spec = load_model_spec(family)
    assert spec.inference is not None
    config = tiny_config(Path(), Layout(family=family))
    return spec.inference(config, TOKENIZER, None, system_prompt)


def ids(*parts: str | int) -> list[int]:
    found: list[int] = []
    for part in parts:
        found += TOKENIZER.encode(part) if isinstance(part, str) else [part]
    return found


def test_emu3_is_asked_for_a_picture_as_its_authors_ask() -> None:
    drawing = make("emu3").drawing("a cat", "bad", (2, 3))
    assert drawing.prompt.tolist() == ids(BOS, "a cat", BOI, "2*3", IMG)
    assert drawing.unguided.tolist() == ids(BOS, "bad", BOI, "2*3", IMG)
    row = [FREE, FREE, FREE, EOL]
    assert drawing.plan.tolist() == [*row, *row, EOF, EOI]
    assert drawing.steps == 7
    dropped = make("emu3").drawing("a cat", "", (2, 3)).unguided
    assert dropped.tolist() == ids(BOS, BOI, "2*3", IMG)


@pytest.mark.parametrize("area", PUBLISHED)
def test_emu3_draws_the_published_sizes(area: int) -> None:
    inference = make("emu3")
    found = [inference.grid(ratio, area) for ratio in RATIOS]
    expected = iter(map(int, PUBLISHED[area].split()))
    assert found == list(zip(expected, expected, strict=True))
    with pytest.raises(ValueError, match="--ratio 5:4 is unknown; use one of 1:1, 4:3"):
        inference.grid("5:4", area)
    with pytest.raises(ValueError, match="--image-area 3 holds no code"):
        inference.grid("1:1", 3)


def test_emu3s_published_ids() -> None:
    config = preset_table()["emu3_8b"].build()
    spec = load_model_spec("emu3")
    assert spec.inference is not None
    tokenizer = ByteTokenizer()
    tokenizer.vocab_size = config.model.text_vocab_size
    inference = spec.inference(config, tokenizer)
    assert inference.code_ids == range(151854, 184622)
    assert inference.stop_ids == (151850,)
    assert (inference.defaults.guidance_scale, inference.defaults.top_k) == (3.0, 2048)
    drawing = inference.drawing("x", "y", inference.grid("1:1", inference.defaults.image_area))
    assert len(drawing.plan) == 90 * 91 + 2


def test_janus_is_asked_for_a_picture_as_its_authors_ask() -> None:
    inference = make("janus_pro")
    special = inference.encoder.special_tokens  # type: ignore[attr-defined]
    drawing = inference.drawing("a cat", None, inference.grid("1:1", (8 * JANUS_GRID) ** 2))
    expected = ids(special.bos, special.user, ": a cat\n\n", special.assistant, ":", special.boi)
    assert drawing.prompt.tolist() == expected
    unguided = [special.bos, *[special.pad] * (len(expected) - 2), special.boi]
    assert drawing.unguided.tolist() == unguided
    assert drawing.plan.tolist() == [FREE] * JANUS_GRID**2
    negative = inference.drawing("a cat", "bad", (JANUS_GRID, JANUS_GRID)).unguided.tolist()
    assert negative == ids(
        special.bos, special.user, ": bad\n\n", special.assistant, ":", special.boi
    )
    with pytest.raises(ValueError, match="draws squares only"):
        inference.grid("4:3", (8 * JANUS_GRID) ** 2)
    with pytest.raises(ValueError, match="--image-area 100: this model draws 256 pixels"):
        inference.grid("1:1", 100)


def asked(inference: Inference, *texts: str) -> list[int]:
    roles = ("human", "gpt") * len(texts)
    turns = [Turn(role, text) for role, text in zip(roles, texts, strict=False)]
    written = inference.question(turns, (), "q").prompt.tolist()
    assert inference.question_length(turns, (), "q") == len(written)
    return written


def test_emu3_is_asked_in_its_template() -> None:
    lead = "You are a helpful assistant. USER: "
    assert asked(make("emu3"), "hi") == ids(BOS, lead + "hi. ASSISTANT:")
    talk = asked(make("emu3"), "hi", "yes", "and?")
    assert talk == ids(BOS, lead + "hi. ASSISTANT:", "yes", EOS, " USER: and?. ASSISTANT:")
    assert asked(make("emu3", "Be brief."), "hi") == ids(BOS, "Be brief. USER: hi. ASSISTANT:")
    assert asked(make("emu3", ""), "hi") == ids(BOS, "USER: hi. ASSISTANT:")


def test_janus_is_asked_in_its_template() -> None:
    inference = make("janus_pro")
    special = inference.encoder.special_tokens  # type: ignore[attr-defined]
    end = (special.assistant, ":")
    assert asked(inference, "hi") == ids(special.bos, special.user, ": hi\n\n", *end)
    assert asked(inference, "hi", "yes", "and?") == ids(
        special.bos,
        *(special.user, ": hi\n\n", *end, " yes", special.eos),
        *(special.user, ": and?\n\n", *end),
    )
    system = make("janus_pro", "Be brief.")
    assert asked(system, "hi") == ids(special.bos, "Be brief.\n\n", special.user, ": hi\n\n", *end)
    assert system.encoder.fingerprint != inference.encoder.fingerprint


def test_a_picture_without_its_tokeniser_is_named(tmp_path: Path) -> None:
    turn = Turn("human", "<image>what?")
    with pytest.raises(ValueError, match="--image-tokenizer"):
        make("emu3").question((turn,), (FilePicture(tmp_path / "a.png"),), "q")


def test_codes_of_a_picture() -> None:
    for family in ("emu3", "janus_pro"):
        inference = make(family)
        drawing = inference.drawing("a", None, (JANUS_GRID, JANUS_GRID))
        codes = np.arange(4).reshape(2, 2) + CODEBOOK_SIZE - 4
        written = drawing.plan.copy()
        written[written == FREE] = codes.ravel() + inference.code_ids.start
        np.testing.assert_array_equal(inference.codes(drawing, written), codes)
    assert MODELS["emu3"].codebook_size == len(make("emu3").code_ids)


def test_words_of_an_answer() -> None:
    emu3 = make("emu3")
    assert emu3.text([*ids(" a cat "), EOS]) == "a cat"
    assert emu3.text([BOI, *ids("x"), emu3.code_ids.start]) == "x"
    janus = make("janus_pro")
    assert janus.text([*ids(" a cat"), *janus.stop_ids]) == "a cat"


# heads and slots


@pytest.mark.parametrize("wanted", [range(0, 24), range(5, 6), range(7, 19), range(20, 24)])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
def test_ranks_hold_every_wanted_column_once(wanted: range, ranks: int) -> None:
    width = 24 // ranks
    found: list[int] = []
    for rank in range(ranks):
        part = columns_of_rank(wanted, width, rank)
        found += range(rank * width, (rank + 1) * width)[part]
    assert found == list(wanted)


def state(lengths: Sequence[int], new: int = 2) -> DecodeState:
    return DecodeState(lengths, max(lengths) + new, torch.device("cpu"))


def test_positions_begin_with_each_rows_prompt() -> None:
    slots = state([3, 1])
    assert slots.begin(3).tolist() == [[0, 1, 2], [0, 0, 0]]
    assert slots.begin(1).tolist() == [[3], [1]]
    assert slots.begin(1).tolist() == [[4], [2]]
    with pytest.raises(AssertionError, match="more tokens than there are slots"):
        slots.begin(1)


def test_empty_slots_are_seen_by_themselves_alone() -> None:
    slots = state([3, 1])
    slots.begin(3)
    assert slots.mask is not None and not slots.is_causal
    whole = [[True, False, False], [True, True, False], [True, True, True]]
    alone = [[True, False, False], [False, True, False], [False, False, True]]
    assert slots.mask.squeeze(1).tolist() == [whole, alone]
    slots.begin(1)
    assert slots.mask.squeeze(1).squeeze(1).tolist() == [[True] * 4, [False, False, True, True]]


def test_rows_of_one_length_need_no_mask() -> None:
    slots = state([2, 2])
    slots.begin(2)
    assert slots.mask is None and slots.is_causal
    slots.begin(1)
    assert slots.mask is None and not slots.is_causal


def test_fp8_and_dropout_rest_while_a_model_writes() -> None:
    """What a run sets for its layers comes back as it was."""
    from megatron_aia.generation.swap import decoding

    class Attention(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.core_attention: torch.nn.Module = torch.nn.Identity()
            self.sequence_parallel = True

    class Layer(torch.nn.Module):
        layer_number = 1

        def __init__(self) -> None:
            super().__init__()
            self.self_attention = Attention()
            self.head = torch.nn.Linear(2, 2)
            self.head.sequence_parallel = False  # type: ignore[assignment]

    class Chunk(torch.nn.Module):
        blocks = ("decoder",)

        def __init__(self) -> None:
            super().__init__()
            self.config = config
            self.decoder = torch.nn.Module()
            self.decoder.layers = torch.nn.ModuleList([Layer()])

    from megatron.core.transformer.transformer_config import TransformerConfig

    config = TransformerConfig(num_layers=1, hidden_size=4, num_attention_heads=1)
    config.fp8, config.sequence_parallel = "hybrid", True
    chunk = Chunk()
    (layer,) = chunk.decoder.layers  # type: ignore[union-attr, misc]
    before = layer.self_attention.core_attention
    with pytest.raises(RuntimeError, match="stop"), decoding([chunk]):
        assert (config.fp8, config.sequence_parallel) == (None, False)
        assert not layer.self_attention.sequence_parallel and not chunk.training
        assert layer.self_attention.core_attention is not before
        raise RuntimeError("stop")
    assert (config.fp8, config.sequence_parallel) == ("hybrid", True)
    assert layer.self_attention.sequence_parallel and not layer.head.sequence_parallel
    assert layer.self_attention.core_attention is before and chunk.training
