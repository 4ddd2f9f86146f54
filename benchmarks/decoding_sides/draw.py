"""One side draws a batch of pictures in a process of its own; prints seconds, memory and tokens."""

import json
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from decoding_sides.models import Words
from megatron_aia.checkpoint.folder import find_checkpoint
from megatron_aia.config import ParallelConfig
from megatron_aia.generation.decoder import Decoder
from megatron_aia.generation.drawing import Guidance, draw_pictures
from megatron_aia.generation.load import inference_config, open_writer
from megatron_aia.generation.sampling import Sampling, guide
from megatron_aia.models import load_model_spec
from megatron_aia.models.inference import FREE, Drawing
from megatron_aia.runtime.device import device, has_cuda

PROMPTS = (
    "a red boat on a lake",
    "a blue cup on a book",
    "an old man who rides",
    "two small green cats",
)
SCALE = 3.0
Draw = Callable[[list[Drawing]], list[list[int]]]


def _measured(draw: Draw, drawings: list[Drawing]) -> dict[str, Any]:
    """Draw once to warm up, then once more."""
    short = [replace(d, plan=d.plan[:40], grid=(1, 40)) for d in drawings]
    draw(short)
    before = _memory(reset=True)
    start = time.perf_counter()
    tokens = draw(drawings)
    seconds = time.perf_counter() - start
    return {"seconds": seconds, "bytes": _memory() - before, "tokens": tokens}


def _memory(reset: bool = False) -> int:
    """Return the peak since the last reset, which now is what is held."""
    if has_cuda():
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def ours(keeps: bool, folder: Path, family: str, count: int, side: int) -> dict[str, Any]:
    """Draw with this project, with keys and values kept or with all of them computed again."""
    checkpoint = folder / "megatron"
    config = inference_config(find_checkpoint(checkpoint), ParallelConfig(), False)
    make = load_model_spec(family).inference
    assert make is not None
    inference = make(config, Words(config.model.text_vocab_size))
    with open_writer(checkpoint, config) as writer:
        model = (writer.chunks, inference, writer.parallel)

        def draw(drawings: list[Drawing]) -> list[list[int]]:
            greedy = Guidance(SCALE, Sampling(0.0))
            found = draw_pictures(*model, drawings, list(range(len(drawings))), greedy)
            return [ids[: d.steps].tolist() for ids, d in zip(found, drawings, strict=True)]

        def draw_again(drawings: list[Drawing]) -> list[list[int]]:
            rows = [d.prompt for d in drawings] + [d.unguided for d in drawings]
            for step in range(drawings[0].steps):
                hidden = Decoder(*model, rows, 0).read_prompts()
                logits = guide(inference.code_logits(writer.chunks[-1], hidden), SCALE)
                chosen = (logits.argmax(-1) + inference.code_ids.start).cpu().numpy()
                plans = np.array([d.plan[step] for d in drawings])
                ids = np.tile(np.where(plans == FREE, chosen, plans), 2)
                rows = [np.append(row, token) for row, token in zip(rows, ids, strict=True)]
            return [row[len(d.prompt) :].tolist() for row, d in zip(rows, drawings, strict=False)]

        return _measured(draw if keeps else draw_again, _drawings(inference, count, side))


def by_transformers(folder: Path, family: str, count: int, side: int) -> dict[str, Any]:
    """Draw with ``generate`` of Transformers."""
    import transformers

    checkpoint = folder / "megatron"
    config = inference_config(find_checkpoint(checkpoint), ParallelConfig(), False)
    make = load_model_spec(family).inference
    assert make is not None
    inference = make(config, Words(config.model.text_vocab_size))
    name = {"emu3": "Emu3", "janus_pro": "Janus"}[family] + "ForConditionalGeneration"
    model = getattr(transformers, name).from_pretrained(folder / "hf", dtype=torch.float32)
    model.to(device()).eval()

    def draw_emu3(drawings: list[Drawing]) -> list[list[int]]:
        plan, start = drawings[0].plan, len(drawings[0].prompt)
        codes = list(inference.code_ids)

        def allowed(_: int, ids: torch.Tensor) -> list[int]:
            forced = int(plan[len(ids) - start])
            return codes if forced == FREE else [forced]

        generation = transformers.generation
        unguided = torch.from_numpy(np.stack([d.unguided for d in drawings])).to(device())
        processors = [
            generation.UnbatchedClassifierFreeGuidanceLogitsProcessor(
                SCALE, model, unconditional_ids=unguided
            ),
            generation.PrefixConstrainedLogitsProcessor(allowed, num_beams=1),
        ]
        ids = torch.from_numpy(np.stack([d.prompt for d in drawings])).to(device())
        drawn = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            logits_processor=generation.LogitsProcessorList(processors),
            max_new_tokens=drawings[0].steps,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return drawn[:, start:].tolist()

    def draw_janus(drawings: list[Drawing]) -> list[list[int]]:
        ids = torch.from_numpy(np.stack([d.prompt for d in drawings])).to(device())
        model.model.vision_model.config.num_image_tokens = drawings[0].steps
        drawn = model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            generation_mode="image",
            generation_config=transformers.GenerationConfig(
                bos_token_id=256,
                eos_token_id=257,
                pad_token_id=258,
                generation_kwargs={"boi_token_id": 259},
                guidance_scale=SCALE,
                do_sample=False,
            ),
        )
        return (drawn + inference.code_ids.start).tolist()

    draw = {"emu3": draw_emu3, "janus_pro": draw_janus}[family]
    with torch.inference_mode():
        return _measured(draw, _drawings(inference, count, side))


def _drawings(inference: Any, count: int, side: int) -> list[Drawing]:
    return [inference.drawing(words, None, (side, side)) for words in PROMPTS[:count]]


SIDES: dict[str, Callable[[Path, str, int, int], dict[str, Any]]] = {
    "kept": partial(ours, True),
    "computed again": partial(ours, False),
    "Transformers": by_transformers,
}

if __name__ == "__main__":
    name, folder, family, count, side = sys.argv[1:]
    print(json.dumps(SIDES[name](Path(folder), family, int(count), int(side))))
