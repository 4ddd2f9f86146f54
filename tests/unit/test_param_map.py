"""The algebra of weight maps: where each number goes, and that it comes back."""

import math
from pathlib import Path

import pytest
import torch

from megatron_aia.models import preset_table
from megatron_aia.models.emu3.convert import FORMAT, vocab_size
from megatron_aia.models.emu3.hf_config import document, model_config
from megatron_aia.models.hugging_face import HFTarget
from megatron_aia.models.janus_pro.convert import weight_map as janus_map
from megatron_aia.models.janus_pro.hf_names import export_names as janus_names
from megatron_aia.models.map_checks import check_sources, check_targets
from megatron_aia.models.param_map import (
    Direct,
    FusedQKV,
    GatedMLP,
    ParamMap,
    StackedQKV,
    Vocabulary,
)

MAPS = {
    "direct": Direct("a", (3, 5)),
    "direct, one dimension less": Direct("a", (3, 5), source_shape=(1, 3, 5)),
    "qkv, 1 group": FusedQKV("q", "k", "v", 1, 6, 4, (7,)),
    "qkv, 2 groups": FusedQKV("q", "k", "v", 2, 6, 4, (7,)),
    "qkv, every head a group": FusedQKV("q", "k", "v", 6, 6, 4, (7,)),
    "qkv, biases": FusedQKV("q", "k", "v", 2, 6, 4, ()),
    "stacked qkv": StackedQKV("qkv", 3, 5, (7,)),
    "stacked qkv, biases": StackedQKV("qkv", 3, 5, ()),
    "gated": GatedMLP("gate", "up", 5, 3),
    "vocabulary": Vocabulary("a", 13, 16, (3,)),
    "vocabulary, biases": Vocabulary("a", 13, 16, ()),
    "vocabulary without padding": Vocabulary("a", 16, 16, (3,)),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", MAPS)
def test_there_and_back_is_bit_identical(name: str, dtype: torch.dtype) -> None:
    entry: ParamMap = MAPS[name]
    tensors = [torch.randn(shape).to(dtype) for shape in entry.sources.values()]
    parameter = entry.join(tensors)
    assert tuple(parameter.shape) == entry.target_shape
    back = entry.split(parameter)
    assert all(torch.equal(a, b) for a, b in zip(tensors, back, strict=True))
    assert {tensor.dtype for tensor in back} == {dtype}


def test_a_query_group_is_its_queries_then_its_key_then_its_value() -> None:
    entry = FusedQKV("q", "k", "v", num_groups=2, num_heads=4, head_size=1, row_shape=(1,))
    q, k, v = torch.tensor([[0.0], [1], [2], [3]]), torch.tensor([[10.0], [11]]), torch.ones(2, 1)
    assert entry.join([q, k, v]).flatten().tolist() == [0, 1, 10, 1, 2, 3, 11, 1]


def test_stacked_heads_come_together() -> None:
    entry = StackedQKV("qkv", num_heads=2, head_size=1, row_shape=())
    stacked = torch.tensor([0.0, 1, 10, 11, 20, 21])
    assert entry.join([stacked]).tolist() == [0, 10, 20, 1, 11, 21]


def test_padding_is_zero() -> None:
    assert not Vocabulary("a", 13, 16, (3,)).join([torch.ones(13, 3)])[13:].any()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "lacks a"),
        ({"a": (3, 4)}, r"a has shape \[3, 4\]"),
        ({"a": (3, 5), "b": (1,)}, "holds b, which no part"),
        ({"a": (3, 5), "b": (1,), "c": (1,)}, "holds b and 1 more"),
    ],
)
def test_every_tensor_has_a_use(found: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_sources({"x": MAPS["direct"]}, found, lambda name: False)


def test_carried_tensors_are_no_mistake() -> None:
    found = {"a": (3, 5), "vq.b": (1,)}
    check_sources({"x": MAPS["direct"]}, found, lambda name: name.startswith("vq."))


@pytest.mark.parametrize("parameters", [{}, {"x": (3, 4)}, {"x": (3, 5), "y": (1,)}])
def test_every_parameter_is_set(parameters: dict[str, tuple[int, ...]]) -> None:
    with pytest.raises(ValueError, match="disagree on"):
        check_targets({"x": MAPS["direct"]}, parameters)


def test_published_configuration_is_the_preset() -> None:
    preset = preset_table()["emu3_8b"].build().model
    assert model_config({"model_type": "Emu3"}) == preset
    assert vocab_size(preset) == 184_622


def test_published_checkpoint_has_291_tensors() -> None:
    preset = preset_table()["emu3_8b"].build().model
    table = FORMAT.weight_map(preset, FORMAT.export_names("original", False))
    assert sum(len(entry.sources) for entry in table.values()) == 291


@pytest.mark.parametrize(
    ("name", "parameters", "tensors"),
    [("janus_pro_7b", 7_420_368_523, 936), ("janus_pro_1b", 2_089_232_011, 882)],
)
def test_published_janus_pro_is_complete(name: str, parameters: int, tensors: int) -> None:
    """The counts of the published files, less the image tokeniser and the tower's unused head."""
    names = janus_names("original", True)
    preset = preset_table()[name].build().model
    shapes = [
        shape for entry in janus_map(preset, names).values() for shape in entry.sources.values()
    ]
    tokeniser_and_head = 357
    assert len(shapes) == tensors - tokeniser_and_head
    only_travels = 71_883_403 + 12_595_200  # counted in the authors' classes
    assert sum(math.prod(shape) for shape in shapes) == parameters - only_travels


@pytest.mark.parametrize("layout", ["original", "transformers"])
def test_configuration_there_and_back(layout: str) -> None:
    model = preset_table()["emu3_demo"].build().model
    target = HFTarget(model, layout, "float32", None, {}, Path())  # type: ignore[arg-type]
    assert model_config(document(target)) == model


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"num_hidden_layers": "many"}, "is 'many', no whole number"),
        ({"vocab_size": 1000}, "leaves -150854 image codes"),
        ({"vq_config": {"codebook_size": 7}}, "the codebook has 7"),
        ({"num_key_value_heads": 5}, "do not divide"),
        ({"rope_theta": 0.5}, "no whole number"),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, "rotary embedding is scaled"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary embedding is scaled"),
    ],
)
def test_another_architecture_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        model_config({"model_type": "Emu3", **values})
