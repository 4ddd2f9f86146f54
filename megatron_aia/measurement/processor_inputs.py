"""Understanding samples as inputs of a Transformers model, by its processor and chat template."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

from megatron_aia.measurement.hf_model import MeasuredInputs
from megatron_aia.measurement.recorder import IntensityTerm
from megatron_aia.measurement.samples import InactiveSampleError
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.raw_sample import IMAGE_TAG, RawSample, Turn

_ROLES = {"human": "user", "gpt": "assistant"}


def image_token_ids(config: PretrainedConfig) -> tuple[int, ...]:
    """Return the ids that stand for image tokens, from a model's configuration.

    Raises:
        ValueError: it names none.
    """
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if isinstance(found, int):
            return (found,)
    raise ValueError(
        f"{type(config).__name__} names no image token; pass its ids as --image-token-ids"
    )


def understanding_inputs(
    processor: Any, sample: RawSample, image_ids: Sequence[int], max_length: int
) -> MeasuredInputs:
    """Write a conversation as the model reads it: queries are its answers, keys its images.

    Args:
        processor: of the model.
        sample: its images are pictures, seen in human turns.
        image_ids: ids of the image's tokens.
        max_length: most tokens; nothing is cut.

    Raises:
        InactiveSampleError: no answer, no image, an image of codes, too long; naming it.
        CorruptSampleError: a picture is damaged.
        ValueError: the processor does not write an answer where its template has it.
    """
    _check(sample)
    pictures = _pictures(sample)
    messages = [_message(turn) for turn in sample.turns]
    inputs = _process(processor, _render(processor, messages), pictures)
    ids = inputs["input_ids"][0]
    if len(ids) > max_length:
        raise InactiveSampleError(f"longer than {max_length} tokens")
    keys = torch.isin(ids, torch.tensor(list(image_ids))).nonzero().flatten()
    if not len(keys):
        raise InactiveSampleError("no image token among its tokens")
    queries = torch.cat(
        [
            _answer_positions(processor, messages[: number + 1], pictures, ids, sample.key)
            for number, turn in enumerate(sample.turns)
            if turn.role == "gpt" and turn.text
        ]
    )
    return MeasuredInputs(inputs, IntensityTerm(0, queries, keys), len(ids), len(pictures))


def draws_images(config: PretrainedConfig) -> bool:
    """Return whether images are codes among a model's tokens, so that it can draw them."""
    return hasattr(config, "vq_config")


def generation_inputs(
    processor: Any, sample: RawSample, image_ids: Sequence[int], max_length: int
) -> MeasuredInputs:
    """Write a prompt and its image: queries are the image's tokens, keys all before them.

    Args:
        processor: of a model that draws; its image token stands for a picture's codes.
        sample: a prompt, and one picture.
        image_ids: ids of the image's tokens.
        max_length: most tokens; nothing is cut.

    Raises:
        InactiveSampleError: no prompt, an image of codes, too long; naming it.
    """
    prompt = sample.turns[0].text
    if not prompt:
        raise InactiveSampleError("no prompt")
    inputs = _process(processor, f"{prompt}{processor.image_token}", _pictures(sample))
    ids = inputs["input_ids"][0]
    if len(ids) > max_length:
        raise InactiveSampleError(f"longer than {max_length} tokens")
    queries = torch.isin(ids, torch.tensor(list(image_ids))).nonzero().flatten()
    if not len(queries):
        raise InactiveSampleError("no image token among its tokens")
    term = IntensityTerm(0, queries, torch.arange(int(queries[0])))
    return MeasuredInputs(inputs, term, len(ids), len(sample.images))


def _check(sample: RawSample) -> None:
    if not any(turn.role == "gpt" and turn.text for turn in sample.turns):
        raise InactiveSampleError("no answer")
    if any(turn.role == "gpt" and IMAGE_TAG in turn.text for turn in sample.turns):
        raise InactiveSampleError("draws an image")
    if not sample.images:
        raise InactiveSampleError("no image")


def _pictures(sample: RawSample) -> list[Any]:
    image = import_optional("PIL.Image", "demo")
    pictures = []
    for stored in sample.images:
        if not hasattr(stored, "decode"):
            raise InactiveSampleError("an image is stored as codes, not as a picture")
        pictures.append(image.fromarray(stored.decode()))
    return pictures


def _message(turn: Turn) -> dict[str, Any]:
    """Write a turn as chat templates take it: images stand between the pieces of text."""
    content: list[dict[str, str]] = []
    for number, text in enumerate(turn.text.split(IMAGE_TAG)):
        content += [{"type": "image"}] if number else []
        content += [{"type": "text", "text": text}] if text else []
    return {"role": _ROLES[turn.role], "content": content}


def has_template(processor: Any) -> bool:
    """Return whether a processor has a chat template; without, a turn is a line."""
    return getattr(processor, "chat_template", None) is not None


def _render(processor: Any, messages: Sequence[dict[str, Any]], answers: bool = False) -> str:
    if has_template(processor):
        rendered = processor.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=answers
        )
        return str(rendered)
    lines = [
        "".join(part.get("text", processor.image_token) for part in message["content"])
        for message in messages
    ]
    return "\n".join([*lines, ""] if answers else lines)


def _process(processor: Any, text: str, pictures: Sequence[Any]) -> Mapping[str, Any]:
    """Return the processor's tensors; a first token that the template wrote is not added again."""
    first = processor.tokenizer.bos_token
    inputs: Mapping[str, Any] = processor(
        text=[text],
        images=list(pictures) or None,
        return_tensors="pt",
        add_special_tokens=not (first and text.startswith(first)),
    )
    return inputs


def _answer_positions(
    processor: Any,
    messages: Sequence[dict[str, Any]],
    pictures: Sequence[Any],
    ids: Tensor,
    key: str,
) -> Tensor:
    """Return where the words of the last message stand among ``ids``.

    The text before them and the text up to their end are processed too: their tokens must begin
    ``ids``, so that template and tokeniser cannot lead astray.
    """
    seen = sum(part["type"] == "image" for m in messages for part in m["content"])
    before = _render(processor, messages[:-1], answers=True)
    answer = messages[-1]["content"][-1]["text"]
    whole = _render(processor, messages)
    place = whole.rfind(answer)
    if not whole.startswith(before) or place < 0:
        raise ValueError(f"sample {key}: the chat template writes another text before an answer")
    pieces = (whole[:place], whole[: place + len(answer)])
    appended = _count_appended(processor)
    starts = []
    for piece in pieces:
        start = _process(processor, piece, pictures[:seen])["input_ids"][0]
        start = start[: len(start) - appended]
        starts.append(start)
        if not torch.equal(start, ids[: len(start)]):
            raise ValueError(
                f"sample {key}: the tokens of an answer run into those beside it; this processor "
                "cannot be measured"
            )
    return torch.arange(len(starts[0]), len(starts[1]))


def _count_appended(processor: Any) -> int:
    """Return how many tokens the processor puts behind any text."""
    first, other = (_process(processor, text, ())["input_ids"][0] for text in "ab")
    return next(
        n
        for n, pair in enumerate(zip(first.flip(0), other.flip(0), strict=False))
        if pair[0] != pair[1]
    )
