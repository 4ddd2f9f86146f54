"""Intensities beside a core attention that is not opened, such as Transformer Engine's in FP8."""

from typing import Any, Optional

from megatron.core.transformer.enums import AttnMaskType
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.attention.core_attention import first_head, shared_layout
from megatron_aia.attention.methods import Method
from megatron_aia.runtime import recompute


class SampledCoreAttention(MegatronModule):
    """Another core attention, and beside it sampled intensities from the same inputs.

    The other attention must be causal over the whole sequence, so one holds a single sample, from
    its first token on. Padding after it sees the sample and is seen by none of its tokens. Queries
    and keys reach the sample as the layer made them, in bfloat16: it does not see what the other
    attention rounds them to.

    Built and called by megatron-core as ``core_attention``. The micro-batch comes as
    ``attention_bias``.
    """

    def __init__(
        self,
        config: TransformerConfig,
        layer_number: int,
        attn_mask_type: Optional[Any] = None,
        attention_type: Optional[str] = None,
        attention_dropout: Optional[float] = None,
        softmax_scale: Optional[float] = None,
        cp_comm_type: Optional[str] = None,
        pg_collection: Optional[Any] = None,
        *,
        inner: type,
        method: Method,
        branch: int = 0,
    ) -> None:
        """Arguments are megatron-core's.

        Args:
            inner: class of the other core attention, with megatron-core's interface.
            method: ``sampled``, with its rows and seed.
            branch: see ``AIAContext``.
        """
        super().__init__(config=config)
        assert config.context_parallel_size == 1, "the other attention cannot share sequences"
        self.layer, self.branch = layer_number - 1, branch
        self.softmax_scale: float = softmax_scale or config.kv_channels**-0.5
        self.method = method
        self.sampled = method.build_sampled(self.layer, first_head(config, pg_collection))
        self.inner = inner(
            config=config,
            layer_number=layer_number,
            attn_mask_type=AttnMaskType.causal,
            attention_type=attention_type,
            attention_dropout=attention_dropout,
            softmax_scale=softmax_scale,
            cp_comm_type=cp_comm_type,
            pg_collection=pg_collection,
        )

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Optional[Tensor],
        attn_mask_type: Optional[Any] = None,
        attention_bias: Optional[AIAContext] = None,
        packed_seq_params: Optional[Any] = None,
    ) -> Tensor:
        """Attend, and record the estimated intensities of this layer in ``attention_bias``.

        Args:
            query: ``[s, b, h, d]``, the heads of this tensor-parallel rank.
            key: ``[s, b, g, d]``.
            value: ``[s, b, g, d]``.
            attention_mask: not read; the other attention is causal.
            attn_mask_type: not read.
            attention_bias: the micro-batch, of sequences with at most one sample.
            packed_seq_params: must be None.

        Returns:
            ``[s, b, h * d]``.
        """
        assert isinstance(attention_bias, AIAContext), f"no micro-batch: {type(attention_bias)}"
        assert packed_seq_params is None, "sequences are not packed"
        _check_sequences(attention_bias)
        output: Tensor = self.inner(
            query, key, value, attention_mask=None, attn_mask_type=AttnMaskType.causal
        )
        if recompute.is_first_pass():
            return output
        s, b = query.shape[:2]
        layout = shared_layout(attention_bias, s, b, measure=True)
        q, k = (x.permute(1, 2, 0, 3) for x in (query, key))
        sums = self.sampled.sums(q, k, layout, self.softmax_scale)
        return attention_bias.attach(output, sums, self.layer, self.branch)


def _check_sequences(aia: AIAContext) -> None:
    """Check what a causal mask over whole sequences takes for granted."""
    sequences = [segment.batch_index for segment in aia.segments]
    starts = {segment.start for segment in aia.segments}
    is_single = len(set(sequences)) == len(sequences) and starts <= {0}
    assert is_single, "a sequence holds one sample, from its start"
