"""Samples as a Transformers model reads them: where answers and images stand."""

import numpy as np
import pytest
import torch
import transformers
from support.tiny_processor import TEMPLATE, llava_model, llava_processor

from megatron_aia.aia.roles import Task
from megatron_aia.measurement.processor_inputs import (
    image_token_ids,
    understanding_inputs,
)
from megatron_aia.measurement.recorder import IntensityRecorder
from megatron_aia.measurement.samples import InactiveSampleError
from megatron_aia.shards.raw_sample import RawSample, Turn


class Noise:
    """A picture."""

    def __init__(self, seed: int) -> None:
        self.pixels = np.random.default_rng(seed).integers(0, 256, (40, 50, 3), dtype=np.uint8)

    def decode(self) -> np.ndarray:
        return self.pixels

    def pixel_size(self) -> tuple[int, int]:
        return 50, 40


def sample(*turns: tuple[str, str], images: int = 1) -> RawSample:
    said = tuple(Turn(role, text) for role, text in turns)
    return RawSample("a.tar/1", Task.UNDERSTANDING, said, tuple(Noise(i) for i in range(images)))


TWO_ANSWERS = sample(
    ("human", "<image>What is it?"),
    ("gpt", "It"),
    ("human", "And <image> is it?"),
    ("gpt", "It is it"),
    images=2,
)


def test_queries_are_answers_and_keys_are_images() -> None:
    processor = llava_processor()
    ids = image_token_ids(llava_model(processor).config)
    found = understanding_inputs(processor, TWO_ANSWERS, ids, 512)
    tokens = found.inputs["input_ids"][0]
    decode = processor.tokenizer.decode
    assert decode(tokens[found.term.queries]) == "ItIt is it"
    assert len(found.term.keys) == 32
    assert decode(tokens[found.term.keys]) == "<image>" * 32
    assert (found.images, found.inputs["pixel_values"].shape[0]) == (2, 2)
    # "USER: " stands before the first image, "And " before the second.
    assert found.term.keys[0] == 6
    assert decode(tokens[: found.term.queries[0]]).endswith("What is it?ASSISTANT: ")


def test_measured_through_the_processor() -> None:
    processor = llava_processor()
    model = llava_model(processor)
    found = understanding_inputs(processor, TWO_ANSWERS, image_token_ids(model.config), 512)
    measured = IntensityRecorder(model).measure(found.inputs, [found.term])
    model.set_attn_implementation("eager")
    with torch.no_grad():
        maps = model(**found.inputs, output_attentions=True, use_cache=False).attentions
    queries, keys = found.term.queries, found.term.keys
    expected = [m[0][:, queries][:, :, keys].double().sum(-1).mean().item() for m in maps]
    assert measured[0].tolist() == pytest.approx(expected, abs=1e-6)
    assert measured.std() > 0.01


INACTIVE = [
    (sample(("human", "<image>What?")), "no answer"),
    (sample(("human", "What?"), ("gpt", "A cat"), images=0), "no image"),
    (sample(("human", "Draw"), ("gpt", "<image>")), "draws an image"),
    (sample(("human", "<image>" + "long" * 200), ("gpt", "yes")), "longer than 512 tokens"),
    (
        RawSample(
            "a.tar/2",
            Task.UNDERSTANDING,
            (Turn("human", "<image>"), Turn("gpt", "yes")),
            (np.zeros((2, 2), np.int64),),
        ),
        "stored as codes",
    ),
]


@pytest.mark.parametrize(("raw", "reason"), INACTIVE, ids=[reason for _, reason in INACTIVE])
def test_a_sample_without_intensity_says_why(raw: RawSample, reason: str) -> None:
    processor = llava_processor()
    ids = [processor.tokenizer.convert_tokens_to_ids("<image>")]
    with pytest.raises(InactiveSampleError, match=reason):
        understanding_inputs(processor, raw, ids, 512)


def test_ids_that_never_occur_are_no_image() -> None:
    with pytest.raises(InactiveSampleError, match="no image token"):
        understanding_inputs(llava_processor(), TWO_ANSWERS, [3_000], 512)


def test_a_template_that_changes_what_was_said_is_refused() -> None:
    changed = TEMPLATE.replace("{% for message in", "{{ messages | length }}{% for message in", 1)
    with pytest.raises(ValueError, match="the chat template writes another text before an answer"):
        understanding_inputs(llava_processor(changed), TWO_ANSWERS, [259], 512)


def test_a_model_without_image_tokens_is_named() -> None:
    with pytest.raises(ValueError, match=r"LlamaConfig names no image token.*--image-token-ids"):
        image_token_ids(transformers.LlamaConfig())
