"""What the authors and Transformers call the same tensors of Janus-Pro.

The image tokeniser (VQ) only travels, and so does the pooling head of the authors' tower, which no
model uses and Transformers' layout has no place for.
"""

from collections.abc import Set
from dataclasses import dataclass

from megatron_aia.models.hugging_face import HFLayout
from megatron_aia.models.janus_pro.vq_names import CODEBOOK_COUNTER, to_original, to_transformers

_ORIGINAL_TOKENISER = "gen_vision_model."
_UNUSED_HEAD = "vision_model.vision_tower.attn_pool."
_CODEBOOK_COUNTER = _ORIGINAL_TOKENISER + CODEBOOK_COUNTER


@dataclass(frozen=True)
class JanusNames:
    """One layout's names; prefixes end before ``weight`` or ``bias``. See ``HFNames``."""

    layout: HFLayout
    decoder: str
    head: str
    patch: str
    position: str
    block: str
    """Prefix of a layer of the tower, with its number to fill in."""
    norms: tuple[str, str]
    attention_output: str
    last_norm: str
    look_at: tuple[str, str]
    """Both layers between the tower and the decoder."""
    draw: tuple[str, str]
    """Both layers between an image code and the decoder."""
    code_embedding: str
    code_head: tuple[str, str]
    tokeniser: str

    def passthrough_name(self, name: str) -> str | None:
        """Return the authors' name of a tensor that only travels."""
        if name.startswith(_UNUSED_HEAD):
            return name
        if not name.startswith(self.tokeniser):
            return None
        suffix = name.removeprefix(self.tokeniser)
        return _ORIGINAL_TOKENISER + (suffix if self.layout == "original" else to_original(suffix))

    def export_name(self, kept: str) -> str | None:
        """Return the name of a kept tensor here; Transformers takes the tokeniser's weights."""
        if self.layout == "original":
            return kept
        if kept == _CODEBOOK_COUNTER or kept.startswith(_UNUSED_HEAD):
            return None
        return self.tokeniser + to_transformers(kept.removeprefix(_ORIGINAL_TOKENISER))


_NAMES: dict[HFLayout, JanusNames] = {
    "original": JanusNames(
        layout="original",
        decoder="language_model.model.",
        head="language_model.lm_head.weight",
        patch="vision_model.vision_tower.patch_embed.proj",
        position="vision_model.vision_tower.pos_embed",
        block="vision_model.vision_tower.blocks.{}.",
        norms=("norm1", "norm2"),
        attention_output="attn.proj",
        last_norm="vision_model.vision_tower.norm",
        look_at=("aligner.layers.0", "aligner.layers.2"),
        draw=("gen_aligner.layers.0", "gen_aligner.layers.2"),
        code_embedding="gen_embed.weight",
        code_head=("gen_head.output_mlp_projector", "gen_head.vision_head"),
        tokeniser=_ORIGINAL_TOKENISER,
    ),
    "transformers": JanusNames(
        layout="transformers",
        decoder="model.language_model.",
        head="lm_head.weight",
        patch="model.vision_model.embeddings.patch_embedding",
        position="model.vision_model.embeddings.position_embedding.weight",
        block="model.vision_model.encoder.layers.{}.",
        norms=("layer_norm1", "layer_norm2"),
        attention_output="self_attn.projection_layer",
        last_norm="model.vision_model.post_layernorm",
        look_at=("model.aligner.fc1", "model.aligner.hidden_layers.0"),
        draw=("model.generation_aligner.fc1", "model.generation_aligner.hidden_layers.0"),
        code_embedding="model.generation_embeddings.weight",
        code_head=("model.generation_head.proj_out", "model.generation_head.vision_head"),
        tokeniser="model.vqmodel.",
    ),
}


def find_names(names: Set[str]) -> JanusNames:
    """Return the naming of a checkpoint.

    Raises:
        ValueError: it is neither of Janus's.
    """
    for candidate in _NAMES.values():
        if f"{candidate.decoder}embed_tokens.weight" in names:
            return candidate
    raise ValueError("the tensors have no names of a Janus checkpoint")


def export_names(layout: HFLayout, has_kept: bool) -> JanusNames:
    """Return the naming to write."""
    return _NAMES[layout]
