"""Which tensors of the authors' checkpoint make each parameter, and which only travel.

Of the tower, the model takes the head and the codebook; the rest of the image tokeniser only
travels.
"""

from collections.abc import Sequence, Set
from dataclasses import dataclass

import torch

from megatron_aia.config import Config
from megatron_aia.models.backbone import padded_vocab_size
from megatron_aia.models.hugging_face import HFLayout
from megatron_aia.models.llama_map import layer_map, llama_map
from megatron_aia.models.param_map import Direct, ParamMap, Shape, Vocabulary, linear_map, norm_map
from megatron_aia.models.unifork.fork import BRANCHES
from megatron_aia.models.unifork.settings import UniForkModelConfig

_TOWER = "model.vision_tower.vision_tower."
_HEAD = f"{_TOWER}rqtransformer."
_TOKENIZER = f"{_TOWER}rqvaesiglip."
_CODEBOOK = f"{_TOKENIZER}quantizer.codebooks.0.weight"
"""One row more than there are codes: the last is never looked up."""
_OUTPUT, _INPUT = "lm_head.weight", "embedding.word_embeddings.weight"


@dataclass(frozen=True)
class UniForkNames:
    """See ``HFNames``."""

    has_output: bool
    """Whether the output matrix is there, though it is the embedding."""

    def passthrough_name(self, name: str) -> str | None:
        """Return the authors' name of a tensor of the image tokeniser."""
        return name if name.startswith(_TOKENIZER) and name != _CODEBOOK else None

    def export_name(self, kept: str) -> str | None:
        """Return the name of a kept tensor."""
        return kept


def find_names(names: Set[str]) -> UniForkNames:
    """Return the naming of a checkpoint.

    Raises:
        ValueError: it is not the authors'.
    """
    if "model.norm_gen.weight" not in names:
        raise ValueError("the tensors have no names of a UniFork checkpoint")
    return UniForkNames(_OUTPUT in names)


def export_names(layout: HFLayout, has_kept: bool) -> UniForkNames:
    """Return the naming to write."""
    return UniForkNames(has_output=True)


@dataclass(frozen=True)
class TiedVocabulary(ParamMap):
    """An embedding that is stored a second time as the output matrix."""

    embedding: Vocabulary
    output: str

    @property
    def sources(self) -> dict[str, Shape]:
        """Two of ``[real_size, *row]``."""
        ((_, shape),) = self.embedding.sources.items()
        return {**self.embedding.sources, self.output: shape}

    @property
    def target_shape(self) -> Shape:
        """Of the embedding."""
        return self.embedding.target_shape

    def join(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return the embedding.

        Raises:
            ValueError: the output matrix is another one.
        """
        if not torch.equal(tensors[0], tensors[1]):
            raise ValueError(
                f"{self.output} is not {self.embedding.source}, and config.json says that it is "
                "(tie_word_embeddings)"
            )
        return self.embedding.join(tensors[:1])

    def split(self, parameter: torch.Tensor) -> list[torch.Tensor]:
        """Return it twice."""
        (embedding,) = self.embedding.split(parameter)
        return [embedding, embedding.clone()]


def weight_map(model: UniForkModelConfig, names: UniForkNames) -> dict[str, ParamMap]:
    """Return every parameter of the unsplit model and the tensors that make it."""
    table = llama_map(model, "model.", _OUTPUT, model.text_vocab_size)
    embedding = table[_INPUT]
    if not model.untie_embeddings_and_output_weights and names.has_output:
        assert isinstance(embedding, Vocabulary)
        table[_INPUT] = TiedVocabulary(embedding, _OUTPUT)
    del table["decoder.final_layernorm.weight"]
    for i in range(model.num_shared_layers, model.num_layers):
        ours = f"decoder.layers.{i}."
        table = {name: entry for name, entry in table.items() if not name.startswith(ours)}
        sources = (f"model.layers.{i}.", f"model.gen_fork_layers.{i - model.num_shared_layers}.")
        for branch, theirs in zip(BRANCHES, sources, strict=True):
            table |= layer_map(model, theirs, f"{ours}{branch}.")
    for branch, theirs in zip(BRANCHES, ("model.norm", "model.norm_gen"), strict=True):
        table[f"final_norms.{branch}.weight"] = Direct(f"{theirs}.weight", (model.hidden_size,))
    return table | _input_map(model) | _head_map(model)


def _input_map(model: UniForkModelConfig) -> dict[str, ParamMap]:
    hidden, channels = model.hidden_size, model.code_channels
    theirs = "model.mm_projector."
    return {
        **linear_map("code_projection.encoder.linear_fc1", f"{theirs}linear1", hidden, channels),
        **linear_map("code_projection.encoder.linear_fc2", f"{theirs}linear2", hidden, hidden),
        "codebook.weight": Direct(_CODEBOOK, (model.codebook_size + 1, channels)),
        "markers.weight": Direct(f"{theirs}token_embedding.weight", (2, hidden)),
    }


def _head_map(model: UniForkModelConfig) -> dict[str, ParamMap]:
    hidden, wide = model.hidden_size, model.depth_attention_size
    ffn, depth = model.depth_ffn_hidden_size, model.code_depth
    table: dict[str, ParamMap] = {
        **linear_map("depth_head.in_hidden", f"{_HEAD}in_mlp_2", hidden, hidden),
        **linear_map("depth_head.in_codes", f"{_HEAD}in_mlp_1", hidden, model.code_channels),
        "depth_head.position": Direct(f"{_HEAD}pos_emb_d", (depth, hidden), (1, depth, hidden)),
    }
    for i in range(model.depth_num_layers):
        ours, theirs = f"depth_head.layers.{i}.", f"{_HEAD}head_transformer.blocks.{i}."
        table |= norm_map(f"{ours}input_norm", f"{theirs}ln1", hidden)
        table |= linear_map(f"{ours}attention_in", f"{theirs}attn_in_proj", wide, hidden)
        for name in ("query", "key", "value"):
            table |= linear_map(f"{ours}{name}", f"{theirs}attn.{name}", wide, wide)
        table |= linear_map(f"{ours}attention_proj", f"{theirs}attn.proj", wide, wide)
        table |= linear_map(f"{ours}attention_out", f"{theirs}attn_out_proj", hidden, wide)
        table |= norm_map(f"{ours}mlp_norm", f"{theirs}ln2", hidden)
        table |= linear_map(f"{ours}mlp_in", f"{theirs}mlp.0", ffn, hidden)
        table |= linear_map(f"{ours}mlp_out", f"{theirs}mlp.2", hidden, ffn)
    table |= norm_map("depth_head.norm", f"{_HEAD}classifier_mlp.layer_norm", hidden)
    padded = padded_vocab_size(Config(model=model), model.codebook_size, 1)
    for kind, row_shape in (("weight", (hidden,)), ("bias", ())):
        table[f"depth_head.classifier.{kind}"] = Vocabulary(
            f"{_HEAD}classifier_mlp.linear.{kind}", model.codebook_size, padded, row_shape
        )
    return table
