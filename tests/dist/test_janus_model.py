"""Janus-Pro's network against Transformers' classes and the authors' formula."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("transformers")

from support.janus_reference import hugging_face_twin
from support.layouts import MODELS, Layout, tiny_config
from support.spawn import spawn
from support.tiny_data import CODEBOOK_SIZE, JANUS_GRID, ByteTokenizer

from megatron_aia.aia.profile import load_profile
from megatron_aia.aia.roles import Task
from megatron_aia.config import Config, ParallelConfig
from megatron_aia.data.batch import build_micro_batch
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.models import load_model_spec, preset_table, with_aia_preset
from megatron_aia.models.initialize import initialize_weights
from megatron_aia.models.losses import NextToken
from megatron_aia.runtime.parallel import Parallel, create_parallel, initialize_process_group
from megatron_aia.shards.raw_sample import RawSample, Turn
from megatron_aia.training.counts import count_step
from megatron_aia.training.step import aia_objective, plan_step

SLOTS = JANUS_GRID**2
PUBLISHED_DEPTH = 30


class Stripes:
    """A picture that is as wide as it is high."""

    def __init__(self, colour: int) -> None:
        self.colour = colour

    def decode(self) -> np.ndarray:
        pixels = np.arange(16 * 16 * 3).reshape(16, 16, 3) * self.colour % 256
        return pixels.astype(np.uint8)


def generation(words: str, seed: int) -> RawSample:
    codes = np.random.default_rng(seed).integers(0, CODEBOOK_SIZE, (JANUS_GRID, JANUS_GRID))
    turns = (Turn("human", words), Turn("gpt", "<image>"))
    return RawSample(f"g{seed}", Task.GENERATION, turns, (codes,))


def understanding(question: str, answer: str, seed: int) -> RawSample:
    turns = (Turn("human", f"<image>{question}"), Turn("gpt", answer))
    return RawSample(f"u{seed}", Task.UNDERSTANDING, turns, (Stripes(seed),))


DRAWN = [generation(words, i) for i, words in enumerate(["a cat", "two dogs", "red", "a blue sea"])]
SEEN = [
    understanding(*words, i + 3)
    for i, words in enumerate([("what?", "a cat"), ("colour?", "it is red"), ("how many", "2")])
]
DROPPED = 2


def build(config: Config) -> tuple[Any, Any, Parallel]:
    """Return the family, the whole model with fresh weights, and its layout of one process."""
    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, seed=0)
    spec = load_model_spec("janus_pro")
    model = spec.build(config, parallel, 0)
    initialize_weights(model, config)
    return spec, model.eval(), parallel


def write(config: Config, samples: Sequence[RawSample]) -> list[TokenizedSample]:
    prompt = load_model_spec("janus_pro").encoder(config, ByteTokenizer())
    is_drawn = samples[0].task is Task.GENERATION
    return [prompt(raw, is_drawn and number == DROPPED) for number, raw in enumerate(samples)]


def embed(twin: Any, sample: TokenizedSample) -> torch.Tensor:
    """Return the authors' input of a sample ``[n, h]``, made by Transformers' modules."""
    model = MODELS["janus_pro"]
    tokens = torch.from_numpy(sample.tokens)
    first_code, slot = model.text_vocab_size, model.text_vocab_size + model.codebook_size
    codes = (tokens >= first_code) & (tokens < slot)
    embedded = twin.get_input_embeddings()(tokens.where(tokens < first_code, 0))
    embedded[codes] = twin.prepare_embeddings_for_image_generation(tokens[codes] - first_code)
    if sample.images:
        images = torch.from_numpy(np.stack([image.load() for image in sample.images]))
        pixels = (images.double() / 255 - 0.5) / 0.5
        features = twin.model.aligner(twin.model.vision_model(pixels).last_hidden_state)
        embedded[tokens == slot] = features.flatten(0, 1)
    return embedded


@torch.no_grad()
def released_loss(
    twin: Any, samples: Sequence[TokenizedSample], padded_length: int
) -> tuple[float, list[float]]:
    """The authors' L_attn of a batch of one task, and next-token losses of its samples.

    Texts are padded on the left to one length; the sets are theirs, one token off.
    """
    drawn = samples[0].task is Task.GENERATION
    first_code = MODELS["janus_pro"].text_vocab_size
    targets = load_profile("released_code").resolve(PUBLISHED_DEPTH, "stage")
    total, losses = 0.0, []
    for number, sample in enumerate(samples):
        length = len(sample)
        pads = padded_length - (length - SLOTS if drawn else length)
        rows = torch.cat([torch.zeros(pads, 32, dtype=torch.float64), embed(twin, sample)])
        seen = torch.ones(len(rows), len(rows), dtype=torch.bool).tril()
        seen[:, :pads] = False
        # Finite: in float64, Transformers' own mask turns rows of padding into NaN.
        mask = torch.where(seen, 0.0, -1e9).double()[None, None]
        output = twin.model.language_model(
            inputs_embeds=rows[None], attention_mask=mask, output_attentions=True
        )
        if drawn:
            text = length - SLOTS
            keys = torch.arange(padded_length - 1 - text, padded_length - 1)
            queries = torch.arange(padded_length, padded_length + SLOTS - 1)
            logits = twin.model.generation_head(output.last_hidden_state)[0, -1 - SLOTS : -1]
            labels = torch.from_numpy(sample.tokens[-SLOTS:]) - first_code
        else:
            labelled = torch.from_numpy(np.flatnonzero(sample.label_weights)) + pads
            slot = first_code + MODELS["janus_pro"].codebook_size
            index = pads + int(np.flatnonzero(sample.tokens == slot)[0]) - 1
            keys, queries = torch.arange(index, index + SLOTS), labelled
            logits = twin.lm_head(output.last_hidden_state)[0, labelled - 1]
            labels = torch.from_numpy(sample.tokens)[labelled - pads]
        losses.append(float(torch.nn.functional.cross_entropy(logits, labels)))
        if drawn and number == DROPPED:
            continue
        for layer, attention in enumerate(output.attentions):
            used = attention[0][:, queries][:, :, keys]
            intensity = used.sum(-1).mean(1).mean(-1)
            delta = float(targets.delta[sample.task][layer])
            target = torch.tensor(float(targets.target[sample.task][layer]), dtype=torch.float64)
            total += float(torch.nn.functional.huber_loss(intensity, target, delta=delta))
    return total / (PUBLISHED_DEPTH * len(samples)), losses


def both_losses(samples: Sequence[RawSample], weight: float) -> tuple[float, float, float, float]:
    """Return ours and the authors': the weighted term, then the next-token loss."""
    config = tiny_config(None, Layout(family="janus_pro"))  # type: ignore[arg-type]
    config = with_aia_preset(config, "released_code")
    config = replace(config, model=replace(config.model, num_layers=PUBLISHED_DEPTH))
    spec, ours, parallel = build(config)
    written = write(config, samples)
    batch = build_micro_batch([written[:2], written[2:]], 64, 0, config.model.image_size)
    targets = load_profile("released_code").resolve(PUBLISHED_DEPTH, "stage")
    terms = spec.losses(config)
    counts = count_step([batch], terms, parallel.groups.dp)
    objective = aia_objective(config, counts, targets)
    (item,) = plan_step([batch], spec, terms, config, parallel, counts, objective)
    assert item.aia is not None and item.aia.objective is not None
    with torch.no_grad():
        outputs = spec.forward(ours, item.batch, item.aia)
    term = sum(float(item.aia.loss(i).sum()) for _, i in item.aia.measured)
    next_token = float(
        (NextToken().values(outputs, item.batch, {}) * item.coefficients["ntp"]).sum()
    )
    attention, losses = released_loss(hugging_face_twin(ours, config.model), written, 40)
    labels = [int((sample.label_weights > 0).sum()) for sample in written]
    mean = sum(loss * n for loss, n in zip(losses, labels, strict=True)) / sum(labels)
    return term, weight * attention, next_token, mean


@pytest.mark.parametrize(("samples", "weight"), [(DRAWN, 5.0), (SEEN, 10.0)], ids=["gen", "und"])
def test_released_code_preset_gives_the_authors_loss(
    samples: list[RawSample], weight: float
) -> None:
    term, expected, next_token, mean = spawn(both_losses, 1, samples, weight)
    assert expected > 0.01
    assert term == pytest.approx(expected, rel=1e-6)
    assert next_token == pytest.approx(mean, rel=1e-6)


def tower_features() -> tuple[torch.Tensor, torch.Tensor]:
    """Return the tower's features and those of Transformers' SigLIP with the same weights."""
    import transformers

    config = tiny_config(None, Layout(family="janus_pro"))  # type: ignore[arg-type]
    _, ours, _ = build(config)
    model = config.model
    twin = hugging_face_twin(ours, model).float()
    siglip = transformers.SiglipVisionModel(
        transformers.SiglipVisionConfig(
            hidden_size=model.vision_hidden_size,
            intermediate_size=model.vision_ffn_hidden_size,
            num_hidden_layers=model.vision_num_layers,
            num_attention_heads=model.vision_num_attention_heads,
            image_size=model.image_size,
            patch_size=model.patch_size,
            hidden_act="gelu",
            layer_norm_eps=1e-6,
            vision_use_head=False,
        )
    ).eval()
    state = {
        name.replace("projection_layer", "out_proj"): tensor
        for name, tensor in twin.model.vision_model.state_dict().items()
    }
    inner = getattr(siglip, "vision_model", siglip)
    inner.load_state_dict(state)
    generator = torch.Generator().manual_seed(0)
    side = model.image_size
    images = torch.randint(256, (3, 3, side, side), generator=generator, dtype=torch.uint8)
    with torch.no_grad():
        expected = siglip((images.float() / 255 - 0.5) / 0.5).last_hidden_state
        return ours.vision_model(images), expected


def test_tower_is_siglip() -> None:
    actual, expected = spawn(tower_features, 1)
    assert float((actual - expected).abs().max() / expected.abs().max()) < 1e-6


def count_parameters(preset: str) -> int:
    config = preset_table()[preset].build()
    one = ParallelConfig(tensor_model_parallel_size=1, pipeline_model_parallel_size=1)
    initialize_process_group(1)
    parallel = create_parallel(one, config.model.num_layers, seed=0)
    with torch.device("meta"):
        model = load_model_spec("janus_pro").build(replace(config, parallel=one), parallel, 0)
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    ("preset", "published"), [("janus_pro_7b", 7_420_368_523), ("janus_pro_1b", 2_089_232_011)]
)
def test_presets_have_the_published_size(preset: str, published: int) -> None:
    """Less the image tokeniser and the tower's unused head, counted in the authors' classes."""
    assert spawn(count_parameters, 1, preset) == published - 71_883_403 - 12_595_200
