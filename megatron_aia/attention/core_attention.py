"""The core attention of megatron-core, with intensities: attends, records, injects the gradient."""

from typing import Any, Optional

import torch.distributed as dist
from megatron.core.transformer.module import MegatronModule
from megatron.core.transformer.transformer_config import TransformerConfig
from torch import Tensor

from megatron_aia.aia.inject import AIAContext
from megatron_aia.attention.context_parallel import gather_keys_values
from megatron_aia.attention.layout import AttentionLayout
from megatron_aia.attention.methods import DEFAULT_METHOD, Method
from megatron_aia.runtime import recompute
from megatron_aia.runtime.context_parallel_slices import slices_of_rank


class AIACoreAttention(MegatronModule):
    """Causal attention inside each sample of a packed sequence, with the intensities of its terms.

    Built and called by megatron-core as ``core_attention``. The micro-batch comes as
    ``attention_bias``; its segments are the mask, so ``attention_mask`` is not read.
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
        method: Method = DEFAULT_METHOD,
        branch: int = 0,
    ) -> None:
        """Arguments are megatron-core's; ``method`` says how to attend.

        ``layer_number`` counts from 1 over the whole model; for ``branch`` see ``AIAContext``.

        Raises:
            ValueError: dropout on attention probabilities, for which Eq. 1 has no meaning.
        """
        super().__init__(config=config)
        dropout = config.attention_dropout if attention_dropout is None else attention_dropout
        if dropout:
            raise ValueError(f"attention_dropout is {dropout}; AIA needs --attention-dropout 0")
        # A sink takes probability from the keys, and its gradient is made of the D that we shift.
        softmax = getattr(config, "softmax_type", "vanilla")
        assert softmax == "vanilla", f"no intensity is defined beside an attention sink: {softmax}"
        self.layer, self.branch = layer_number - 1, branch
        self.softmax_scale: float = softmax_scale or config.kv_channels**-0.5
        self.method = method
        self.attend = method.build(self.layer, first_head(config, pg_collection))
        self.context_group: Optional[dist.ProcessGroup] = None
        if config.context_parallel_size > 1:
            assert pg_collection is not None, "ranks that share sequences need their group"
            self.context_group = pg_collection.cp

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
        """Attend, and record the intensities of this layer in ``attention_bias``.

        Args:
            query: ``[s, b, h, d]``, the heads of this tensor-parallel rank and the tokens of this
                context-parallel rank.
            key: ``[s, b, g, d]``.
            value: ``[s, b, g, d]``.
            attention_mask: not read.
            attn_mask_type: not read.
            attention_bias: the micro-batch.
            packed_seq_params: must be None; the segments say how sequences are packed.

        Returns:
            ``[s, b, h * d]``.

        Raises:
            ValueError: ``attention_bias`` is not an AIAContext.
        """
        if not isinstance(attention_bias, AIAContext):
            given = type(attention_bias).__name__
            raise ValueError(f"attention_bias must be an AIAContext, not {given}; pass the batch's")
        assert packed_seq_params is None, "packing is described by the segments"
        s, b, h, d = query.shape
        if self.context_group is not None:
            key, value = gather_keys_values(key, value, self.context_group)
        measure = not recompute.is_first_pass()
        layout = shared_layout(attention_bias, key.shape[0], b, measure, self.context_group)
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, key, value))
        output, sums = self.attend(q, k, v, layout, self.softmax_scale)
        output = output.permute(2, 0, 1, 3).reshape(s, b, h * d)
        return attention_bias.attach(output, sums, self.layer, self.branch) if measure else output


def first_head(config: TransformerConfig, pg_collection: Optional[Any]) -> int:
    """Return the number of this tensor-parallel rank's first query head in the whole model."""
    tensor_rank = pg_collection.tp.rank() if pg_collection is not None else 0
    heads_of_rank = config.num_attention_heads // config.tensor_model_parallel_size
    return int(tensor_rank * heads_of_rank)


def shared_layout(
    aia: AIAContext,
    seq_length: int,
    batch_size: int,
    measure: bool,
    group: Optional[dist.ProcessGroup] = None,
) -> AttentionLayout:
    """Layout of the micro-batch, shared by its layers; without terms if nothing is measured."""
    key = ("layout", seq_length, batch_size, measure)
    if key not in aia.cache:
        held = None if group is None else slices_of_rank(seq_length, group.rank(), group.size())
        layout = AttentionLayout(aia.segments, seq_length, batch_size, held)
        aia.cache[key] = layout if measure else layout.without_terms()
    cached: AttentionLayout = aia.cache[key]
    return cached
