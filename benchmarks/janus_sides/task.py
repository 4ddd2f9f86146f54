"""What both sides of ``janus_step.py`` agree on: sizes, samples, targets.

The learning rate is 0: the work is that of any step, and every step sees the same weights.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from megatron_aia.aia.profile import LayerTargets, load_profile
from megatron_aia.aia.roles import Task
from megatron_aia.config import Config
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.models import load_model_spec, preset_table, with_aia_preset
from megatron_aia.models.janus_pro.special_tokens import NAMES
from megatron_aia.shards.raw_sample import RawSample, Turn

TEXT_SIZE, CODEBOOK_SIZE = 3200, 512
"""As many ids for the width of 128 as Janus-Pro-7B has for its width of 4096."""
HEAD_SIZE = 128
PROMPTS = (25, 60, 130, 200)
"""Tokens of the prompts of four images to draw."""
TALKS = ((20, 90), (30, 180), (40, 330), (60, 560))
"""Tokens of question and answer about four images to look at."""
ROW = 4096
"""Tokens of a row of this project; rows are shortened to what they hold."""
_FIRST_LETTER = 300


@dataclass
class Sizes:
    """What both sides agree on."""

    num_layers: int = 8
    """Decoder layers."""
    hidden_size: int = 128
    """Width, in heads of 128 channels; the MLP follows as in Janus-Pro-7B."""
    generation_padding: int = 1000
    """Tokens to which the recipe pads the text before an image to draw."""
    understanding_padding: int = 3000
    """Tokens to which the recipe pads a whole sample of understanding."""


@dataclass(frozen=True)
class Losses:
    """What one step computed."""

    next_token: float
    aia: float
    """With its weight."""
    grad_norm: float


class Letters:
    """A text tokeniser of one token a character."""

    vocab_size = TEXT_SIZE - 10
    fingerprint = "letters"

    def encode(self, text: str) -> list[int]:
        return list(map(ord, text))

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(map(chr, ids))

    def special_id(self, name: str) -> int:
        return self.vocab_size + list(NAMES.values()).index(name)


class Noise:
    """A picture."""

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def decode(self) -> np.ndarray:
        return np.random.default_rng(self._seed).integers(0, 256, (480, 640, 3)).astype(np.uint8)


def make_config(sizes: Sizes) -> Config:
    demo = preset_table()["janus_demo"].build()
    model = replace(
        demo.model,
        num_layers=sizes.num_layers,
        hidden_size=sizes.hidden_size,
        ffn_hidden_size=round(sizes.hidden_size * 11008 / 4096),
        num_attention_heads=sizes.hidden_size // HEAD_SIZE,
        num_query_groups=sizes.hidden_size // HEAD_SIZE,
        max_position_embeddings=2 * ROW,
        text_vocab_size=TEXT_SIZE,
        codebook_size=CODEBOOK_SIZE,
        image_size=384,
        patch_size=16,
    )
    training = replace(
        demo.training, lr=0.0, min_lr=0.0, weight_decay=0.05, adam_eps=1e-6, clip_grad=1.0
    )
    parallel = replace(demo.parallel, tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    config = replace(demo, model=model, training=training, parallel=parallel)
    return with_aia_preset(config, "released_code")


def make_samples(config: Config) -> dict[str, list[TokenizedSample]]:
    """Return the four samples of each task, as tokens."""
    rng = np.random.default_rng(0)
    prompt = load_model_spec("janus_pro").encoder(config, Letters())

    def words(count: int) -> str:
        return "".join(map(chr, rng.integers(_FIRST_LETTER, TEXT_SIZE - 10, count)))

    side = config.model.image_size // config.model.patch_size
    drawn, seen = [], []
    for count in PROMPTS:
        turns = (Turn("human", words(count)), Turn("gpt", "<image>"))
        codes = rng.integers(0, CODEBOOK_SIZE, (side, side))
        drawn.append(RawSample(f"g{count}", Task.GENERATION, turns, (codes,)))
    for question, answer in TALKS:
        turns = (Turn("human", f"<image>{words(question)}"), Turn("gpt", words(answer)))
        seen.append(RawSample(f"u{answer}", Task.UNDERSTANDING, turns, (Noise(answer),)))
    tokens = {"gen": [prompt(raw, False) for raw in drawn]}
    tokens["und"] = [prompt(raw, False) for raw in seen]
    return {**tokens, "mixed": tokens["gen"] + tokens["und"]}


def make_targets(config: Config) -> LayerTargets:
    return load_profile(config.aia.aia_profile).resolve(config.model.num_layers, "stage")
