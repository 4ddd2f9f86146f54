"""One optimizer step of a plain recipe, written from a description of the authors' AIA training.

Transformers' Janus with eager attention and every map kept, one task a step, texts padded on the
left to a fixed length, torch's AdamW. As on the other side, image codes and pictures are there
before the step begins.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from janus_sides.task import (
    CODEBOOK_SIZE,
    TEXT_SIZE,
    Losses,
    Sizes,
    make_config,
    make_samples,
    make_targets,
)
from megatron_aia.aia.roles import Task
from megatron_aia.config import Config
from megatron_aia.data.sample import TokenizedSample
from megatron_aia.models import load_model_spec
from megatron_aia.models.hugging_face import HFTarget
from megatron_aia.models.initialize import initialize_weights
from megatron_aia.models.janus_pro.convert import weight_map
from megatron_aia.models.janus_pro.hf_document import document
from megatron_aia.models.janus_pro.hf_names import export_names
from megatron_aia.runtime.parallel import create_parallel, initialize_process_group


@dataclass(frozen=True)
class Recipe:
    """The plain recipe, and what may be turned off in it one by one."""

    padding: Literal["fixed", "longest"] = "fixed"
    """Pad to the recipe's lengths, or to the longest sample of the batch."""
    maps: bool = True
    """Keep every attention map for the AIA term; without, fused attention and no term."""
    head: Literal["all", "labels"] = "all"
    """Compute logits at every position, or where there is a label."""


RECIPES = {
    "as described": Recipe(),
    "no fixed padding": Recipe(padding="longest"),
    "head at labels only": Recipe(head="labels"),
    "no maps, no AIA term": Recipe(maps=False),
    "all three": Recipe("longest", False, "labels"),
}


class Reference:
    """The recipe's step on Transformers' model with this project's initial weights."""

    def __init__(self, sizes: Sizes) -> None:
        self.sizes = sizes
        self.config = make_config(sizes)
        self.model = _twin(self.config)
        self.targets = make_targets(self.config)
        self.samples = make_samples(self.config)
        trained = []
        for name, parameter in self.model.named_parameters():
            frozen = name.startswith(("model.vision_model.", "model.vqmodel."))
            parameter.requires_grad_(not frozen)
            trained += [] if frozen else [parameter]
        self.trained = trained
        decayed = [p for p in trained if p.ndim > 1]
        others = [p for p in trained if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0}]
        self.optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(0.9, 0.95), eps=1e-6)
        self.images = {
            sample.key: torch.from_numpy(sample.images[0].load()) for sample in self.samples["und"]
        }

    def positions(self, task: str, recipe: Recipe) -> int:
        return len(self.samples[task]) * self._padded_length(task, recipe)

    def step(self, task: str, recipe: Recipe) -> Losses:
        self.model.set_attn_implementation("eager" if recipe.maps else "sdpa")
        self.optimizer.zero_grad()
        length = self._padded_length(task, recipe)
        samples = self.samples[task]
        pads = [length - len(sample) for sample in samples]
        embedded, mask = self._embed(samples, pads, length)
        output = self.model.model.language_model(
            inputs_embeds=embedded,
            attention_mask=mask,
            output_attentions=recipe.maps,
            use_cache=False,
        )
        next_token = self._next_token(samples, pads, output.last_hidden_state, recipe)
        term = self._term(samples, pads, output.attentions) if recipe.maps else torch.zeros(())
        (next_token + term).backward()
        norm = torch.nn.utils.clip_grad_norm_(self.trained, 1.0)
        self.optimizer.step()
        return Losses(float(next_token.detach()), float(term.detach()), float(norm))

    def _padded_length(self, task: str, recipe: Recipe) -> int:
        if recipe.padding == "longest":
            return max(len(sample) for sample in self.samples[task])
        if task == "und":
            return self.sizes.understanding_padding
        return self.sizes.generation_padding + self._slots

    @property
    def _slots(self) -> int:
        return (self.config.model.image_size // self.config.model.patch_size) ** 2

    def _embed(
        self, samples: Sequence[TokenizedSample], pads: Sequence[int], length: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return inputs ``[b, n, h]`` and the mask ``[b, n]``, 0 at pads."""
        tokens = torch.zeros(len(samples), length, dtype=torch.long)
        mask = torch.zeros(len(samples), length, dtype=torch.long)
        for row, (sample, pad) in enumerate(zip(samples, pads, strict=True)):
            tokens[row, pad:] = torch.from_numpy(sample.tokens)
            mask[row, pad:] = 1
        is_code = (tokens >= TEXT_SIZE) & (tokens < TEXT_SIZE + CODEBOOK_SIZE)
        embedded = self.model.get_input_embeddings()(tokens.where(tokens < TEXT_SIZE, 0))
        if is_code.any():
            codes = tokens[is_code] - TEXT_SIZE
            drawn = self.model.prepare_embeddings_for_image_generation(codes)
            embedded = embedded.masked_scatter(is_code.unsqueeze(-1), drawn)
        else:
            images = torch.stack([self.images[sample.key] for sample in samples])
            pixels = (images.float() / 255 - 0.5) / 0.5
            features = self.model.model.vision_model(pixels).last_hidden_state
            is_slot = (tokens == TEXT_SIZE + CODEBOOK_SIZE).unsqueeze(-1)
            embedded = embedded.masked_scatter(is_slot, self.model.model.aligner(features))
        return embedded, mask

    def _next_token(
        self,
        samples: Sequence[TokenizedSample],
        pads: Sequence[int],
        hidden: torch.Tensor,
        recipe: Recipe,
    ) -> torch.Tensor:
        """Return the mean over all labels of the batch, each predicted one position before."""
        draws = samples[0].task is Task.GENERATION
        head = self.model.model.generation_head if draws else self.model.lm_head
        labels = torch.full(hidden.shape[:2], -100)
        for row, (sample, pad) in enumerate(zip(samples, pads, strict=True)):
            at = torch.from_numpy(np.flatnonzero(sample.label_weights))
            ids = torch.from_numpy(sample.tokens)[at] - (TEXT_SIZE if draws else 0)
            labels[row, at + pad - 1] = ids
        if recipe.head == "all":
            logits = head(hidden)
            return torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        chosen = labels >= 0
        return torch.nn.functional.cross_entropy(head(hidden[chosen]), labels[chosen])

    def _term(
        self,
        samples: Sequence[TokenizedSample],
        pads: Sequence[int],
        maps: Sequence[torch.Tensor],
    ) -> torch.Tensor:
        """Return the weighted mean over layers and samples of the penalty on the intensity."""
        task = samples[0].task
        total = maps[0].new_zeros(())
        for layer, attention in enumerate(maps):
            delta = float(self.targets.delta[task][layer])
            target = torch.tensor(float(self.targets.target[task][layer]))
            for row, (sample, pad) in enumerate(zip(samples, pads, strict=True)):
                rows, keys = self._sets(sample, pad)
                used = attention[row][:, rows][:, :, keys]
                intensity = used.sum(-1).mean(1).mean(-1)
                total = total + torch.nn.functional.huber_loss(intensity, target, delta=delta)
        weight = 5.0 if task is Task.GENERATION else 10.0
        return weight * total / (len(maps) * len(samples))

    def _sets(self, sample: TokenizedSample, pad: int) -> tuple[slice, slice]:
        """Return rows and keys, one token off as in the released code."""
        stop = pad + len(sample)
        if sample.task is Task.GENERATION:
            first_code = stop - self._slots
            # The last code is no row; the token that opens the image is no key, a pad is.
            return slice(first_code, stop - 1), slice(max(pad - 1, 0), first_code - 1)
        first_slot = pad + int(np.flatnonzero(sample.tokens == TEXT_SIZE + CODEBOOK_SIZE)[0])
        answer = pad + int(np.flatnonzero(sample.label_weights)[0])
        return slice(answer, stop), slice(first_slot - 1, first_slot - 1 + self._slots)


def _twin(config: Config) -> Any:
    """Return Transformers' model in training mode with the weights that ``Ours`` begins with."""
    import transformers

    initialize_process_group(1)
    parallel = create_parallel(config.parallel, config.model.num_layers, config.run.seed)
    ours = load_model_spec("janus_pro").build(config, parallel, 0)
    initialize_weights(ours, config)
    settings = document(HFTarget(config.model, "transformers", "float32", None, {}, Path()))
    settings["vq_config"] |= {"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1}
    theirs = transformers.JanusForConditionalGeneration(transformers.JanusConfig(**settings))
    state = theirs.state_dict()
    parameters = dict(ours.named_parameters())
    for name, entry in weight_map(config.model, export_names("transformers", False)).items():
        parts = entry.split(parameters[name].detach())
        state |= dict(zip(entry.sources, parts, strict=True))
    theirs.load_state_dict(state)
    return theirs.train()
