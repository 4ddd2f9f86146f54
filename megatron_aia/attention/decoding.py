"""Attention of a model that writes token by token: keys and values of earlier tokens are kept."""

from collections.abc import Sequence
from typing import Any, Optional

import torch
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor


class DecodeState:
    """What the layers of a model keep of one batch of rows that are written token by token.

    megatron-core hands it to each core attention as ``attention_bias``. Prompts end in the same
    slot: a shorter one has empty slots on its left, to which nothing attends.

    Args:
        prompt_lengths: tokens of each row's prompt.
        slots: the longest prompt and all tokens that will be written behind it.
        device: of the model.
        lane: which of the model's ways the batch takes.
    """

    def __init__(
        self, prompt_lengths: Sequence[int], slots: int, device: torch.device, lane: int = 0
    ) -> None:
        longest = max(prompt_lengths)
        assert longest <= slots, "the prompt has more tokens than there are slots"
        self.slots, self.prompt_slots, self.lane = slots, longest, lane
        self.start = self.stop = 0
        """First slot of the tokens that are being run, and the slot behind the last."""
        self.mask: Optional[Tensor] = None
        """bool ``[b, 1, new, stop]`` of the running tokens, True where a slot may be seen; None:
        every slot up to the token's own."""
        empty = torch.tensor([longest - length for length in prompt_lengths]).unsqueeze(1)
        slot = torch.arange(slots)
        self._positions = (slot - empty).clamp(min=0).to(device)  # [b, slots]
        self._seen = (slot >= empty).to(device) if bool(empty.any()) else None
        self._kept: dict[int, tuple[Tensor, Tensor]] = {}

    def begin(self, new: int) -> Tensor:
        """Take the next ``new`` slots for the tokens that are run now; return their positions.

        The first call takes the prompt's, every later one a single slot.

        Returns:
            int64 ``[b, new]``.
        """
        assert new == (1 if self.stop else self.prompt_slots), "a prompt, then token by token"
        self.start, self.stop = self.stop, self.stop + new
        assert self.stop <= self.slots, "more tokens than there are slots"
        self.mask = self._prompt_mask() if self.start == 0 else self._step_mask()
        return self._positions[:, self.start : self.stop]

    @property
    def is_causal(self) -> bool:
        """Whether the running tokens are a prompt that the causal rule alone describes."""
        return self.mask is None and self.start == 0

    def keep(self, layer: int, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keep the keys and values of the running tokens; return those of all slots so far.

        Args:
            layer: any number that no other layer of this process has.
            key: ``[new, b, g, d]``, rotated.
            value: ``[new, b, g, d]``.

        Returns:
            Two of ``[b, g, stop, d]``.
        """
        if layer not in self._kept:
            _, b, g, d = key.shape
            shape = (b, g, self.slots, d)
            self._kept[layer] = (key.new_empty(shape), value.new_empty(shape))
        keys, values = self._kept[layer]
        keys[:, :, self.start : self.stop] = key.permute(1, 2, 0, 3)
        values[:, :, self.start : self.stop] = value.permute(1, 2, 0, 3)
        return keys[:, :, : self.stop], values[:, :, : self.stop]

    def _prompt_mask(self) -> Optional[Tensor]:
        if self._seen is None:
            return None
        slot = torch.arange(self.stop, device=self._seen.device)
        causal = slot <= slot.unsqueeze(1)
        # An empty slot looks at itself: no row of the softmax is empty, and no token sees it.
        itself = slot == slot.unsqueeze(1)
        seen = self._seen[:, None, : self.stop] & causal
        return (seen | itself).unsqueeze(1)

    def _step_mask(self) -> Optional[Tensor]:
        return None if self._seen is None else self._seen[:, None, None, : self.stop]


class CachedCoreAttention(MegatronModule):
    """The core attention of a layer while it decodes; has no parameters.

    Args:
        config: of the model.
        layer_number: counts from 1 over the whole model.
        block: number of the stack of layers. Branches of a layer need no numbers: a batch takes
            one of them.
    """

    def __init__(self, config: TransformerConfig, layer_number: int, block: int = 0) -> None:
        super().__init__(config=config)
        self._layer = block * config.num_layers + layer_number - 1
        self._scale: float = config.kv_channels**-0.5

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Optional[Tensor],
        attn_mask_type: Optional[Any] = None,
        attention_bias: Optional[DecodeState] = None,
        packed_seq_params: Optional[Any] = None,
    ) -> Tensor:
        """Attend from the running tokens to all slots so far.

        Args:
            query: ``[new, b, h, d]``, the heads of this tensor-parallel rank.
            key: ``[new, b, g, d]``.
            value: ``[new, b, g, d]``.
            attention_mask: not read.
            attn_mask_type: not read.
            attention_bias: the batch.
            packed_seq_params: not read; rows are not packed.

        Returns:
            ``[new, b, h * d]``.
        """
        assert isinstance(attention_bias, DecodeState), type(attention_bias)
        new, b, h, d = query.shape
        keys, values = attention_bias.keep(self._layer, key, value)
        output = torch.nn.functional.scaled_dot_product_attention(
            query.permute(1, 2, 0, 3),
            keys,
            values,
            attn_mask=attention_bias.mask,
            is_causal=attention_bias.is_causal,
            scale=self._scale,
            enable_gqa=h != keys.shape[1],
        )
        return output.permute(2, 0, 1, 3).reshape(new, b, h * d)
