import json
import re

import numpy as np
import pytest

from megatron_aia.building.demo.training import train_patch_quantizer
from megatron_aia.models.emu3.image_tokenizer import (
    Emu3Quantizer,
    resize_to_multiples,
    to_transformers_name,
)
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.shards.patch_quantizer import PatchQuantizer

image_module = pytest.importorskip("PIL.Image")

COLORS = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]], np.uint8)


def checkers(height, width, side=4):
    """A picture of one-colored squares, and which color each has."""
    codes = np.random.default_rng(0).integers(0, 4, (height, width))
    pixels = COLORS[codes].repeat(side, 0).repeat(side, 1)
    return image_module.fromarray(pixels), codes


def color_quantizer(image_area=12 * 20):
    return PatchQuantizer(np.tile(COLORS[:, None, None], (1, 4, 4, 1)), image_area)


def test_codes_of_plain_squares_are_exact():
    image, codes = checkers(3, 5)
    quantizer = color_quantizer()
    np.testing.assert_array_equal(quantizer.encode(image), codes)
    assert quantizer.encode(image).dtype == np.int64
    np.testing.assert_array_equal(np.asarray(quantizer.decode(codes)), np.asarray(image))


@pytest.mark.parametrize("mode", ["RGBA", "L", "P"])
def test_any_mode_and_size_is_encoded(mode):
    image, _ = checkers(40, 80)
    codes = color_quantizer(image_area=4 * 4 * 32).encode(image.convert(mode))
    assert codes.shape == (4, 8)


def test_a_very_long_picture_keeps_a_row():
    image, _ = checkers(1, 90)
    assert color_quantizer(image_area=4 * 4 * 4).encode(image).shape == (1, 19)


def test_training_repeats_and_finds_the_squares(tmp_path):
    pytest.importorskip("sklearn")
    image, codes = checkers(8, 8)
    first, again = (train_patch_quantizer([image], 4, 4, 32 * 32) for _ in range(2))
    np.testing.assert_array_equal(first.codebook, again.codebook)
    np.testing.assert_array_equal(np.asarray(first.decode(first.encode(image))), np.asarray(image))
    assert len(np.unique(first.encode(image))) == len(np.unique(codes)) == 4
    with pytest.raises(ValueError, match="64 patches are too few for 65 codes"):
        train_patch_quantizer([image], 65, 4, 32 * 32)


def test_saved_codebook_is_the_same(tmp_path):
    quantizer = color_quantizer()
    quantizer.save(tmp_path / "codebook.npz")
    loaded = load_image_tokenizer(tmp_path / "codebook.npz")
    assert loaded.name == quantizer.name
    assert loaded.codebook_size == 4
    image, codes = checkers(3, 5)
    np.testing.assert_array_equal(loaded.encode(image), codes)
    larger = load_image_tokenizer(tmp_path / "codebook.npz", image_area=24 * 40)
    assert larger.encode(image).shape == (6, 10)


def test_name_depends_on_the_codebook():
    other = PatchQuantizer(255 - color_quantizer().codebook, 240)
    assert other.name != color_quantizer().name


def test_files_that_are_no_codebook(tmp_path):
    (tmp_path / "text.npz").write_text("no archive")
    np.savez(tmp_path / "other.npz", something=np.zeros(3))
    np.savez(tmp_path / "shape.npz", codebook=np.zeros((4, 3), np.uint8), image_area=9)
    np.savez(tmp_path / "pickle.npz", codebook=np.array([{}]), image_area=9)
    for name in ("text", "other", "shape", "pickle"):
        with pytest.raises(ValueError, match=f"{name}.npz is not a patch codebook"):
            load_image_tokenizer(tmp_path / f"{name}.npz")
    with pytest.raises(ValueError, match="no image tokeniser at"):
        load_image_tokenizer(tmp_path / "missing")


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((720, 720), (720, 720)),
        ((719, 722), (720, 720)),
        ((2000, 1000), (1448, 720)),
        ((100, 200), (368, 728)),
    ],
)
def test_resize_to_multiples(size, expected):
    assert resize_to_multiples(*size, 8, 512**2, 1024**2) == expected
    transformers_module = pytest.importorskip("transformers.models.emu3.image_processing_emu3")
    assert transformers_module.smart_resize(*size, 8, 512**2, 1024**2) == expected


@pytest.mark.parametrize("size", [(7, 30), (100, 501)])
def test_pictures_that_are_too_narrow(size):
    with pytest.raises(ValueError, match="too narrow"):
        resize_to_multiples(*size, 8, 512**2, 1024**2)


@pytest.fixture(scope="module")
def emu3_folder(tmp_path_factory):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    config = transformers.Emu3VQVAEConfig(
        codebook_size=64,
        base_channels=32,
        channel_multiplier=[1, 1, 1, 1],
        num_res_blocks=1,
        hidden_size=32,
    )
    folder = tmp_path_factory.mktemp("emu3_vq")
    transformers.Emu3VQVAE(config).save_pretrained(folder)
    settings = {"min_pixels": 32 * 32, "max_pixels": 64 * 64}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings))
    return folder


def test_emu3_codes(emu3_folder):
    quantizer = load_image_tokenizer(emu3_folder, image_area=40 * 56)
    image, _ = checkers(10, 14)
    codes = quantizer.encode(image)
    assert codes.shape == (5, 7)
    assert codes.dtype == np.int64
    assert codes.min() >= 0
    assert codes.max() < quantizer.codebook_size == 64
    assert len(np.unique(codes)) > 1
    np.testing.assert_array_equal(
        Emu3Quantizer.from_folder(emu3_folder, 40 * 56).encode(image), codes
    )
    assert quantizer.decode(codes).size == (56, 40)


def test_emu3_pixels_equal_those_of_transformers(emu3_folder):
    transformers = pytest.importorskip("transformers")
    torch = pytest.importorskip("torch")
    image = image_module.fromarray(
        np.random.default_rng(0).integers(0, 256, (45, 50, 3)).astype(np.uint8)
    )
    processor = transformers.Emu3ImageProcessor(
        image_mean=[0.5] * 3, image_std=[0.5] * 3, min_pixels=32 * 32, max_pixels=64 * 64
    )
    pixels = processor(image, return_tensors="pt")["pixel_values"]
    model = transformers.Emu3VQVAE.from_pretrained(emu3_folder)
    with torch.no_grad():
        output = model.encode(pixels, torch.tensor([pixels.shape[-2:]]))
    expected = getattr(output, "image_tokens", output)[0]
    quantizer = Emu3Quantizer.from_folder(emu3_folder, image_area=45 * 50)
    np.testing.assert_array_equal(quantizer.encode(image), expected.numpy())


def test_image_tokenizer_of_a_whole_emu3(emu3_folder, tmp_path):
    transformers = pytest.importorskip("transformers")
    alone = transformers.Emu3VQVAE.from_pretrained(emu3_folder)
    text = dict(vocab_size=256, hidden_size=16, intermediate_size=32, num_hidden_layers=1)
    config = transformers.Emu3Config(
        vq_config=alone.config,
        text_config=dict(**text, num_attention_heads=2, num_key_value_heads=1, pad_token_id=0),
        vocabulary_map={"<image>": 1},
    )
    model = transformers.Emu3ForConditionalGeneration(config)
    model.model.vqmodel.load_state_dict(alone.state_dict())
    model.save_pretrained(tmp_path)
    quantizer = Emu3Quantizer.from_folder(tmp_path)
    assert quantizer.name == Emu3Quantizer.from_folder(emu3_folder).name


# Tensors of the authors' network and of transformers', each kind once; the rest have one name.
NAMES = (
    ("encoder.conv_in.weight", "encoder.conv_in.weight"),
    ("encoder.down.3.attn.0.norm.bias", "encoder.down_block.down.3.attn_norms.0.bias"),
    ("encoder.down.3.attn.0.k.weight", "encoder.down_block.down.3.attn.0.k_proj.weight"),
    ("encoder.down.0.downsample.conv.bias", "encoder.down_block.down.0.downsample.conv.bias"),
    ("encoder.mid.block_1.norm1.weight", "encoder.middle_block.block_1.norm1.weight"),
    ("encoder.mid.attn_1.q.bias", "encoder.middle_block.attn_1.q_proj.bias"),
    ("encoder.mid.attn_1.proj_out.weight", "encoder.middle_block.attn_1.out_proj.weight"),
    ("encoder.time_conv.1.conv.conv.bias", "encoder.time_conv.1.conv.conv.bias"),
    ("decoder.mid.attn_1.norm.conv_y.weight", "decoder.middle_block.attn_norm.conv_y.weight"),
    ("decoder.up.3.attn.1.norm.conv_b.bias", "decoder.up_block.up.3.attn_norms.1.conv_b.bias"),
    ("decoder.up.3.attn.1.proj_out.bias", "decoder.up_block.up.3.attn.1.out_proj.bias"),
    ("decoder.up.0.block.0.norm2.conv_b.bias", "decoder.up_block.up.0.block.0.norm2.conv_b.bias"),
    ("decoder.norm_out.conv_y.weight", "decoder.norm_out.conv_y.weight"),
    ("quantize.embedding.weight", "quantize.embedding.weight"),
)


@pytest.mark.parametrize(("authors", "transformers_name"), NAMES)
def test_names_of_the_authors_network(authors, transformers_name, emu3_folder):
    torch_files = pytest.importorskip("safetensors.torch")
    assert to_transformers_name(authors) == transformers_name
    assert transformers_name in torch_files.load_file(emu3_folder / "model.safetensors")


def write_authors_folder(source, folder, without=""):
    """Write the network in ``source`` as the authors publish theirs, attention of 1 x 1 kernels."""
    torch_files = pytest.importorskip("safetensors.torch")
    weights = {}
    for name, tensor in torch_files.load_file(source / "model.safetensors").items():
        for ours, theirs in (
            ("_block.down.", ".down."),
            ("_block.up.", ".up."),
            (".middle_block.", ".mid."),
            (".attn_norm.", ".attn_1.norm."),
            (".out_proj.", ".proj_out."),
            *((f".{part}_proj.", f".{part}.") for part in "qkv"),
        ):
            name = name.replace(ours, theirs)
        name = re.sub(r"\.attn_norms\.(\d+)\.", r".attn.\1.norm.", name)
        name = name.replace("encoder.down.down", "encoder.down").replace(
            "decoder.up.up", "decoder.up"
        )
        is_kernel = re.search(r"attn.*\.([qkv]|proj_out)\.weight", name)
        weights[name] = tensor[..., None, None] if is_kernel else tensor
    weights.pop(without, None)
    torch_files.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "model_type": "Emu3VisionVQ",
        **{"codebook_size": 64, "ch": 32, "ch_mult": [1, 1, 1, 1], "num_res_blocks": 1},
        **{"attn_resolutions": [3], "z_channels": 4, "double_z": False, "dropout": 0.0},
    }
    (folder / "config.json").write_text(json.dumps(config))
    settings = (source / "preprocessor_config.json").read_text()
    (folder / "preprocessor_config.json").write_text(settings)


def test_the_authors_folder_gives_the_same_codes_and_pictures(emu3_folder, tmp_path):
    write_authors_folder(emu3_folder, tmp_path)
    theirs, ours = load_image_tokenizer(tmp_path), load_image_tokenizer(emu3_folder)
    assert theirs.fingerprint == ours.fingerprint
    image, _ = checkers(10, 14)
    codes = ours.encode(image)
    np.testing.assert_array_equal(theirs.encode(image), codes)
    assert theirs.decode(codes).tobytes() == ours.decode(codes).tobytes()


def test_the_authors_folder_without_a_weight(emu3_folder, tmp_path):
    write_authors_folder(emu3_folder, tmp_path, without="encoder.mid.attn_1.k.bias")
    with pytest.raises(ValueError, match=r"lacks weights: .'encoder.middle_block.attn_1.k_proj"):
        load_image_tokenizer(tmp_path)


def test_folders_without_emu3(tmp_path, emu3_folder):
    with pytest.raises(ValueError, match=r"cannot read .*config.json"):
        load_image_tokenizer(tmp_path)
    for document, message in (
        ([], "has no model_type"),
        ({"model_type": "llama"}, "model_type 'llama', whose .* expected one of Emu3VisionVQ, "),
        ({"model_type": "emu3"}, "holds no Emu3 image tokeniser: its model_type is emu3"),
        ({"model_type": "Emu3VisionVQ", "ch": "wide"}, "holds no Emu3 image tokeniser"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(document))
        with pytest.raises(ValueError, match=message):
            load_image_tokenizer(tmp_path)


def test_missing_weights_are_not_left_random(emu3_folder, tmp_path):
    torch_files = pytest.importorskip("safetensors.torch")
    (tmp_path / "config.json").write_text((emu3_folder / "config.json").read_text())
    weights = torch_files.load_file(emu3_folder / "model.safetensors")
    del weights["quantize.embedding.weight"]
    torch_files.save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks weights: \['quantize.embedding.weight'\]"):
        Emu3Quantizer.from_folder(tmp_path)
