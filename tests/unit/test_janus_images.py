"""Janus-Pro's image tokeniser against transformers, and against its definition in float64."""

import json
import re

import numpy as np
import pytest

from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.models.janus_pro.image_tokenizer import JanusQuantizer
from megatron_aia.shards.patch_quantizer import PatchQuantizer

image_module = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
safetensors_torch = pytest.importorskip("safetensors.torch")

CODEBOOK_SIZE = 60
FACTOR = 4
SIDE = 24
SIZES = {
    "base_channels": 32,
    "channel_multiplier": [1, 2, 1],
    "num_res_blocks": 1,
    "latent_channels": 32,
    "num_embeddings": CODEBOOK_SIZE,
}


def original_names(weights):
    """Name transformers' tensors as the authors' checkpoint does."""
    renamed = {}
    for name, tensor in weights.items():
        for old, new in (
            ("encoder.down.", "encoder.conv_blocks."),
            ("decoder.up.", "decoder.conv_blocks."),
            (".mid.block_1.", ".mid.0."),
            (".mid.attn_1.", ".mid.1."),
            (".mid.block_2.", ".mid.2."),
        ):
            name = name.replace(old, new)
        renamed["gen_vision_model." + re.sub(r"(conv_blocks\.\d+)\.block\.", r"\1.res.", name)] = (
            tensor
        )
    return renamed | {
        "gen_vision_model.quantize.codebook_used": torch.zeros(65536),
        "vision_model.encoder.weight": torch.zeros(1),
        "language_model.encoder.weight": torch.zeros(1),
    }


@pytest.fixture(scope="module", params=[False, True], ids=["lengths differ", "unit lengths"])
def model(request):
    torch.manual_seed(1)
    model = transformers.JanusVQVAE(
        transformers.JanusVQVAEConfig(num_patches=SIDE // FACTOR, **SIZES)
    ).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    with torch.no_grad():
        rows = model.quantize.embedding.weight
        rows /= rows.norm(dim=1, keepdim=True)
        if not request.param:
            rows *= torch.linspace(0.5, 1.5, CODEBOOK_SIZE)[:, None]
    model.is_unit = request.param
    return model


def save(folder, weights, model_type, kind="safetensors"):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    names = sorted(weights)
    for number, part in enumerate((names[::2], names[1::2])):
        tensors = {name: weights[name] for name in part}
        if kind == "safetensors":
            safetensors_torch.save_file(tensors, folder / f"model-{number}.safetensors")
        else:
            torch.save(tensors, folder / f"pytorch_model-{number}.bin")
    return folder


@pytest.fixture
def folder(model, tmp_path):
    weights = {f"model.vqmodel.{name}": tensor for name, tensor in model.state_dict().items()}
    return save(tmp_path / "whole", weights, "janus")


def picture(width, height):
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3)).astype(np.uint8)
    return image_module.fromarray(pixels)


def pixels_of(image):
    return (torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255 - 0.5) / 0.5


def test_codes_are_the_nearest_directions(model, folder):
    quantizer = load_image_tokenizer(folder, image_area=SIDE * SIDE)
    assert isinstance(quantizer, JanusQuantizer)
    image = picture(SIDE, SIDE)
    codes = quantizer.encode(image)
    assert codes.shape == (6, 6) and codes.dtype == np.int64
    with torch.no_grad():
        points = model.quant_conv(model.encoder(pixels_of(image))).double()
    points = points.permute(0, 2, 3, 1).reshape(-1, 8)
    rows = model.quantize.embedding.weight.detach().double()
    points, rows = (side / side.norm(dim=1, keepdim=True) for side in (points, rows))
    expected = torch.cdist(points, rows).argmin(1).view(6, 6)
    np.testing.assert_array_equal(codes, expected.numpy())
    assert len(np.unique(codes)) > 10
    with torch.no_grad():
        theirs = model.encode(pixels_of(image)).image_tokens.view(6, 6).numpy()
    # The trap: transformers compares points, which is the same only for rows of length 1.
    assert np.array_equal(codes, theirs) == model.is_unit


def test_decoding_is_that_of_transformers(model, folder):
    quantizer = load_image_tokenizer(folder, image_area=SIDE * SIDE)
    codes = np.random.default_rng(0).integers(0, CODEBOOK_SIZE, (6, 6))
    with torch.no_grad():
        pixels = model.decode(torch.from_numpy(codes).view(1, -1))[0]
    expected = ((pixels.permute(1, 2, 0) * 0.5 + 0.5) * 255).round().clamp(0, 255).numpy()
    decoded = np.asarray(quantizer.decode(codes)).astype(float)
    assert np.abs(decoded - expected).max() <= 1
    assert quantizer.decode(codes[:3]).size == (SIDE, SIDE // 2)


@pytest.mark.parametrize("size", [(SIDE, 2 * SIDE + 5), (101, 61), (9, 7)])
def test_any_picture_becomes_a_square(folder, size):
    quantizer = load_image_tokenizer(folder, image_area=SIDE * SIDE)
    assert quantizer.encode(picture(*size).convert("RGBA")).shape == (6, 6)
    assert load_image_tokenizer(folder, image_area=8 * 8).encode(picture(*size)).shape == (2, 2)


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
def test_the_authors_names_give_the_same_tokeniser(model, folder, tmp_path, kind):
    weights = original_names(model.state_dict())
    weights = {name: tensor.bfloat16().float() for name, tensor in weights.items()}
    ours = save(tmp_path / "authors", weights, "multi_modality", kind)
    quantizer = load_image_tokenizer(ours, image_area=SIDE * SIDE)
    half = {f"vqmodel.{name}": tensor.bfloat16() for name, tensor in model.state_dict().items()}
    other = load_image_tokenizer(save(tmp_path / "half", half, "janus"), image_area=SIDE * SIDE)
    assert quantizer.name == other.name
    assert quantizer.codebook_size == CODEBOOK_SIZE
    image = picture(40, 30)
    np.testing.assert_array_equal(quantizer.encode(image), other.encode(image))


def test_the_vq_model_alone(model, folder, tmp_path):
    model.save_pretrained(tmp_path / "alone")
    alone = load_image_tokenizer(tmp_path / "alone", image_area=SIDE * SIDE)
    assert alone.name == load_image_tokenizer(folder, image_area=SIDE * SIDE).name


@pytest.mark.parametrize("lost", ["quantize.embedding.weight", "decoder.mid.block_1.norm1.bias"])
def test_missing_weights_are_named(model, tmp_path, lost):
    weights = {f"vqmodel.{name}": tensor for name, tensor in model.state_dict().items()}
    del weights[f"vqmodel.{lost}"]
    with pytest.raises(ValueError, match=f"lacks weights: .*{lost}"):
        load_image_tokenizer(save(tmp_path / "lacking", weights, "janus"), image_area=SIDE * SIDE)


def test_folders_without_a_tokeniser(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "multi_modality"}')
    with pytest.raises(ValueError, match="holds no image tokeniser of Janus-Pro"):
        load_image_tokenizer(tmp_path)
    (tmp_path / "pytorch_model.bin").write_text("garbage")
    with pytest.raises(ValueError, match=r"pytorch_model\.bin cannot be read"):
        load_image_tokenizer(tmp_path)


@pytest.mark.parametrize("area", [SIDE * SIDE + 1, 25, 2])
def test_an_area_that_is_no_square_of_codes(folder, area):
    with pytest.raises(ValueError, match=f"--image-area {area} is no square of whole codes"):
        load_image_tokenizer(folder, image_area=area)


def test_a_square_codebook_cuts_the_middle_out(tmp_path):
    grays = np.arange(0, 256, 16, dtype=np.uint8)
    codebook = np.broadcast_to(grays[:, None, None, None], (16, 4, 4, 3)).copy()
    PatchQuantizer(codebook, 12 * 12, is_square=True).save(tmp_path / "codebook.npz")
    quantizer = load_image_tokenizer(tmp_path / "codebook.npz")
    pixels = np.zeros((12, 36, 3), np.uint8)
    pixels[:, 12:24] = 160
    codes = quantizer.encode(image_module.fromarray(pixels))
    np.testing.assert_array_equal(codes, np.full((3, 3), 10))
    smaller = load_image_tokenizer(tmp_path / "codebook.npz", image_area=8 * 8)
    assert smaller.encode(picture(31, 57)).shape == (2, 2)
