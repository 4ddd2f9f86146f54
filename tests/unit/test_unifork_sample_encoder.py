"""UniFork's samples, token by token, against the authors' templates written out here."""

from typing import Any

import numpy as np
import pytest
import torch

from megatron_aia.aia.roles import Task, find_terms
from megatron_aia.config import Config
from megatron_aia.config.files import with_values
from megatron_aia.data.targets import NEXT_TOKEN
from megatron_aia.models import check_family, preset_table
from megatron_aia.models.unifork.sample_encoder import UniForkSampleEncoder
from megatron_aia.models.unifork.special_tokens import NAMES, SYSTEM_PROMPT
from megatron_aia.models.unifork.vocabulary import UniForkVocabulary
from megatron_aia.shards.raw_sample import RawSample, Turn

IDS = UniForkVocabulary(text_size=140, codebook_size=20, depth=3)
CODES = np.arange(12).reshape(2, 2, 3)
IMAGE = [IDS.first_code + (a + 20 * (b + 20 * c)) for a, b, c in CODES.reshape(4, 3).tolist()]
BEGIN, END, DROPPED = (128 + number for number in range(3))


class OneTokenPerLetter:
    vocab_size = 128
    fingerprint = "ascii"

    def encode(self, text: str) -> list[int]:
        return [ord(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))

    def special_id(self, name: str) -> int:
        return 128 + list(NAMES.values()).index(name)


ENCODER = UniForkSampleEncoder(IDS, OneTokenPerLetter(), grid=2)


def raw(task: Task, texts: list[str], images: tuple[Any, ...] = ()) -> RawSample:
    roles = ["human", "gpt"] * len(texts)
    turns = tuple(Turn(role, text) for role, text in zip(roles, texts, strict=False))
    return RawSample("shard/1", task, turns, images)


def letters(text: str) -> list[int]:
    return [ord(letter) for letter in text]


def labels(sample: Any) -> dict[int, int]:
    """Return position of the output that predicts, to what it predicts."""
    target = sample.targets[NEXT_TOKEN]
    assert (target.weights == 1).all()
    return dict(zip(target.positions.tolist(), target.values.tolist(), strict=True))


def test_an_image_token_is_all_of_its_codes() -> None:
    large = UniForkVocabulary(151_936, 16_384, 4)
    codes = torch.randint(0, 16_384, (50, 4), generator=torch.Generator().manual_seed(0))
    codes[0], codes[1] = 0, 16_383
    ids = large.join_codes(codes)
    assert ids[0] == large.first_code and ids[1] == large.stop - 1 < 1 << 62
    assert torch.equal(large.split_codes(ids), codes)
    assert large.join_codes(codes.numpy()).tolist() == ids.tolist()


def test_generation() -> None:
    sample = ENCODER(raw(Task.GENERATION, [" a cat ", "<image>"], (CODES,)), drop_prompt=False)
    prompt = [BEGIN, *letters("USER: a cat ASSISTANT: "), IDS.begin]
    assert sample.tokens.tolist() == [*prompt, *IMAGE]
    # The marker predicts the first token.
    assert labels(sample) == {len(prompt) - 1 + number: token for number, token in enumerate(IMAGE)}
    (term,) = find_terms(sample.roles, 0)
    assert term.task == Task.GENERATION
    assert term.queries.tolist() == list(range(len(prompt), len(prompt) + 4))
    assert term.keys.tolist() == list(range(len(prompt)))


def test_a_dropped_prompt() -> None:
    sample = ENCODER(raw(Task.GENERATION, ["a cat", "<image>"], (CODES,)), drop_prompt=True)
    words = [BEGIN, *letters("USER: "), DROPPED, *letters(". ASSISTANT: "), IDS.begin]
    assert sample.tokens.tolist() == [*words, *IMAGE]
    assert len(labels(sample)) == 4 and not sample.roles.any()


def test_a_short_prompt_is_planned_with_room_for_a_dropped_one() -> None:
    for prompt in ("a", "a cat"):
        sample = raw(Task.GENERATION, [prompt, "<image>"], (CODES,))
        planned = len(ENCODER.dry_run(sample))
        assert planned == max(len(ENCODER(sample, drop)) for drop in (False, True))


def test_understanding() -> None:
    texts = ["what?\n<image>", "a cat", "sure?", " yes"]
    sample = ENCODER(raw(Task.UNDERSTANDING, texts, (CODES,)), drop_prompt=True)
    before = [BEGIN, *letters(f"{SYSTEM_PROMPT} USER: "), IDS.begin]
    question = [IDS.end, *letters("\nwhat? ASSISTANT:")]
    answer = [*letters(" a cat"), END]
    second = letters("USER: sure? ASSISTANT:")
    last = [*letters(" yes"), END]
    tokens = [*before, *IMAGE, *question, *answer, *second, *last]
    assert sample.tokens.tolist() == tokens
    first = len(before) + 4 + len(question)
    again = first + len(answer) + len(second)
    expected = {first - 1 + number: token for number, token in enumerate(answer)}
    expected |= {again - 1 + number: token for number, token in enumerate(last)}
    assert labels(sample) == expected
    (term,) = find_terms(sample.roles, 0)
    assert term.keys.tolist() == list(range(len(before), len(before) + 4))
    assert len(term.queries) == len(expected)


def test_text_and_lanes() -> None:
    sample = ENCODER(raw(Task.TEXT, ["hi", "ho"]), drop_prompt=False)
    words = letters(f"{SYSTEM_PROMPT} USER: hi ASSISTANT: ho")
    assert sample.tokens.tolist() == [BEGIN, *words, END]
    assert not sample.roles.any()
    assert [ENCODER.lane(task) for task in (Task.GENERATION, Task.UNDERSTANDING, Task.TEXT)] == [
        *(1, 0, 0)
    ]


@pytest.mark.parametrize(
    ("task", "texts", "images", "said"),
    [
        (Task.MIXED, ["<image>a", "<image>"], (CODES, CODES), "a mixed sample looks and draws"),
        (Task.GENERATION, ["a", "<image>"], (CODES[..., 0],), r"have shape \[2, 2\], and the mod"),
        (Task.GENERATION, ["a", "<image>"], (CODES + 10,), "codes 10 to 21, but the model's"),
        (Task.UNDERSTANDING, ["<image>a", "b"], (object(),), "is stored as a picture; pass --i"),
    ],
)
def test_what_cannot_be_written(
    task: Task, texts: list[str], images: tuple[Any, ...], said: str
) -> None:
    with pytest.raises(ValueError, match=f"sample shard/1: .*{said}"):
        ENCODER(raw(task, texts, images), drop_prompt=False)


def demo(**values: Any) -> Config:
    return with_values(preset_table()["unifork_demo"].build(), values)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"num_shared_layers": 7}, "--num-shared-layers 7 is more than --num-layers 6; use 0 to 6"),
        ({"patch_size": 7}, "--patch-size 7 does not divide --image-size 64; use 1, 2, 4"),
        ({"depth_num_attention_heads": 5}, "--depth-num-attention-heads 5 does not divide --dep"),
        ({"code_depth": 7}, "--codebook-size 512 to the power of --code-depth 7 is no 62-bit"),
        (
            {"depth_ffn_hidden_size": 383, "tensor_model_parallel_size": 2},
            "--tensor-model-parallel-size 2 does not divide --depth-ffn-hidden-size 383",
        ),
    ],
)
def test_sizes_that_do_not_fit(values: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError) as caught:
        check_family(demo(**values))
    assert said in str(caught.value)


@pytest.mark.parametrize("shared", [0, 6])
def test_it_may_fork_anywhere(shared: int) -> None:
    check_family(demo(num_shared_layers=shared))
