"""Image codes from a trained model, without a cache of keys: for checks and small figures."""

import torch
from torch import Tensor

from megatron_aia.models.backbone import packed_causal_mask
from megatron_aia.models.janus_pro.network import JanusModel


@torch.no_grad()
def draw_greedily(model: torch.nn.Module, prompt: Tensor, num_codes: int) -> Tensor:
    """Draw the most probable code at each position.

    Args:
        model: the whole ``JanusModel`` in one process.
        prompt: int64 ``[n]``, ids of ``JanusVocabulary`` up to the token that begins an image.
        num_codes: codes of an image.

    Returns:
        int64 ``[num_codes]``, each below ``codebook_size``.
    """
    assert isinstance(model, JanusModel)
    ids = model.vocabulary
    tokens = prompt.unsqueeze(0)
    for _ in range(num_codes):
        positions = torch.arange(tokens.shape[1], device=tokens.device).unsqueeze(0)
        mask = packed_causal_mask(torch.zeros_like(tokens))
        hidden = model(tokens, positions, mask)
        code = model.code_logits(hidden[:, -1])[..., : ids.codebook_size].argmax(-1)
        tokens = torch.cat([tokens, ids.first_code + code.unsqueeze(1)], dim=1)
    return tokens[0, len(prompt) :] - ids.first_code
