"""Intensities of a Transformers model (Eq. 1), taken inside its attention interface.

One more attention call a layer, whose values are indicators of the key sets, returns each query's
share of attention on each set: ``softmax(q k^T + mask) 1[key in set]``. It is exact for every mask
that the model passes, and holds no n x n map.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Optional
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

IMPLEMENTATION = "megatron_aia_intensity"
"""Name of the attention that measures, in Transformers' register."""


@dataclass(frozen=True)
class IntensityTerm:
    """Queries and keys of one intensity: int64 positions in a row of the batch, none empty."""

    row: int
    queries: Tensor
    keys: Tensor


class IntensityRecorder:
    """Measures the decoder layers of a model; its towers and its code stay as they are.

    Args:
        model: any Transformers model whose decoder attends through the attention interface.

    Raises:
        ValueError: the decoder has no attention layers that are numbered once each.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.num_layers = int(model.config.get_text_config().num_hidden_layers)
        self.attending = tuple(sorted(_number_attention_layers(model)))
        """Layers that attend, from 0; a hybrid model has others too."""
        self._terms: Sequence[IntensityTerm] = ()
        self._found: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def measure(self, inputs: Mapping[str, Any], terms: Sequence[IntensityTerm]) -> Tensor:
        """Run one forward pass and return the intensity of each term in each decoder layer.

        Args:
            inputs: of the model's ``forward``: all that its processor returns.
            terms: positions of queries and keys; a query before its keys sees none of them.

        Returns:
            float64 ``[terms, layers]`` on the CPU; NaN for layers that do not attend.

        Raises:
            ValueError: a layer did not attend through the interface exactly once, or it attends in
                a way that its keys alone do not give: with sinks or capped scores.
        """
        self._terms, self._found = terms, {}
        with _measuring(self):
            self.model(**inputs, use_cache=False)
        seen = {layer: len(calls) for layer, calls in self._found.items()}
        if seen != dict.fromkeys(self.attending, 1):
            once = sum(count == 1 for count in seen.values())
            raise ValueError(
                f"{type(self.model).__name__}: {once} of {len(self.attending)} attention layers "
                "went through Transformers' attention interface once; this model cannot be measured"
            )
        intensity = torch.full((len(terms), self.num_layers), torch.nan, dtype=torch.float64)
        for layer, calls in self._found.items():
            intensity[:, layer] = calls[0].cpu()
        return intensity

    def record(self, layer: int, masses: Sequence[Tensor]) -> None:
        """Keep the shares of each term's queries in a layer, each ``[queries, heads]``."""
        means = torch.stack([mass.double().mean() for mass in masses])
        self._found.setdefault(layer, []).append(means)

    @property
    def terms(self) -> Sequence[IntensityTerm]:
        """Of the pass that runs."""
        return self._terms


_ACTIVE: WeakKeyDictionary[nn.Module, tuple[IntensityRecorder, int]] = WeakKeyDictionary()
"""Recorder and layer of each attention module that is being measured."""


@contextlib.contextmanager
def _measuring(recorder: IntensityRecorder) -> Iterator[None]:
    model = recorder.model
    before, was_training = _implementations(model.config), model.training
    modules = _number_attention_layers(model)
    try:
        model.eval()
        model.set_attn_implementation(
            _implementations(model.config, model.config.get_text_config())
        )
        _ACTIVE.update({module: (recorder, layer) for layer, module in modules.items()})
        yield
    finally:
        for module in modules.values():
            _ACTIVE.pop(module, None)
        model.set_attn_implementation(before)
        model.train(was_training)


def _implementations(config: PretrainedConfig, measured: Optional[PretrainedConfig] = None) -> Any:
    """Return the attention of a configuration and those inside it, as Transformers sets them."""
    if config is measured:
        return IMPLEMENTATION
    inner = {name: getattr(config, name) for name in config.sub_configs}
    inner = {
        name: _implementations(sub, measured) for name, sub in inner.items() if sub is not None
    }
    return {"": config._attn_implementation, **inner} if inner else config._attn_implementation


def _number_attention_layers(model: PreTrainedModel) -> dict[int, nn.Module]:
    """Return the attention modules of the decoder by their layer, which counts from 0."""
    layers: dict[int, nn.Module] = {}
    for module in model.get_decoder().modules():
        layer = getattr(module, "layer_idx", None)
        if isinstance(layer, int) and type(module).__name__.endswith("Attention"):
            if layer in layers:
                raise ValueError(
                    f"{type(model).__name__}: its decoder has two attention modules of layer "
                    f"{layer}; this model cannot be measured"
                )
            layers[layer] = module
    if not layers:
        raise ValueError(
            f"{type(model).__name__}: its decoder has no modules named ...Attention that know "
            "their layer_idx; this model cannot be measured"
        )
    return layers


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Optional[Tensor],
    dropout: float = 0.0,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend as ``sdpa`` does; measure where the module is a layer of an active recorder."""
    output, _ = sdpa_attention_forward(
        module, query, key, value, attention_mask, dropout=dropout, **options
    )
    if module in _ACTIVE:
        recorder, layer = _ACTIVE[module]
        _refuse_other_softmax(module, options)
        masses = _masses(module, query, key, attention_mask, recorder.terms, options)
        recorder.record(layer, masses)
    return output, None


def _refuse_other_softmax(module: nn.Module, options: Mapping[str, Any]) -> None:
    for name, what in (("s_aux", "attention sinks"), ("softcap", "capped attention scores")):
        if options.get(name) is not None:
            raise ValueError(
                f"{type(module).__name__} has {what} ({name}), which Transformers' sdpa attention "
                "does not compute; this model cannot be measured"
            )


def _masses(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    attention_mask: Optional[Tensor],
    terms: Sequence[IntensityTerm],
    options: Mapping[str, Any],
) -> list[Tensor]:
    """Return for each term the share of its keys, ``[queries, heads]``.

    Args:
        module: the attention.
        query: ``[batch, heads, n, d]`` after rotary embedding.
        key: ``[batch, key heads, m, d]``, the same.
        attention_mask: what the model passes; None is causal.
        terms: what is measured.
        options: other arguments of the attention.
    """
    batch, _, length, width = key.shape
    numbers = _number_in_row(terms)
    masses: list[Tensor] = [query.new_empty(0)] * len(terms)
    # Indicators as wide as the values keep the fast kernels: a call measures d terms of a row.
    for first in range(0, max(numbers, default=-1) + 1, width):
        sets = key.new_zeros(batch, 1, length, width)
        of_call = [i for i, number in enumerate(numbers) if first <= number < first + width]
        for index in of_call:
            term = terms[index]
            sets[term.row, 0, term.keys.to(key.device), numbers[index] - first] = 1
        mass, _ = sdpa_attention_forward(
            module, query, key, sets.expand_as(key), attention_mask, dropout=0.0, **options
        )
        for index in of_call:
            term = terms[index]
            queries = term.queries.to(key.device)
            masses[index] = mass[term.row, queries, :, numbers[index] - first]
    return masses


def _number_in_row(terms: Sequence[IntensityTerm]) -> list[int]:
    """Count the terms of each row of the batch: 0, 1, ..."""
    counts: dict[int, int] = {}
    numbers = []
    for term in terms:
        numbers.append(counts.get(term.row, 0))
        counts[term.row] = numbers[-1] + 1
    return numbers


# Without the second line Transformers passes no mask at all, and says nothing.
AttentionInterface.register(IMPLEMENTATION, _attend)
AttentionMaskInterface.register(IMPLEMENTATION, sdpa_mask)
