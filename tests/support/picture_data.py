"""The same records built twice: with codes of the drawn images, and with pictures alone."""

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from megatron_aia.building.build import build_shards
from megatron_aia.building.options import BuildOptions
from megatron_aia.shards.patch_quantizer import PatchQuantizer
from support.janus_checkpoints import original_name
from support.runs import write_tokenizer
from support.tiny_data import CODEBOOK_SIZE, JANUS_GRID

Layout = Literal["transformers", "original"]

SIDE = 8 * JANUS_GRID
"""Pixels of an image of the tests' Janus-Pro, whose codes are 8 pixels wide."""
TURNED = 6
"""EXIF's orientation of a picture whose camera stood on its side."""


def write_pictures(folder: Path) -> list[str]:
    """Write pictures of several kinds and shapes; return their names."""
    from PIL import Image

    folder.mkdir()
    exif = Image.Exif()
    exif[0x0112] = TURNED
    files: dict[str, tuple[tuple[int, int], str, dict[str, Any]]] = {
        "wide.png": ((40, 24), "RGB", {}),
        "turned.jpg": ((48, 30), "RGB", {"exif": exif}),
        "turned.png": ((25, 33), "RGB", {"exif": exif}),
        "gray.jpg": ((33, 33), "L", {}),
        "clear.png": ((20, 31), "RGBA", {}),
        "few.png": ((64, 64), "P", {}),
        "small.webp": ((11, 9), "RGB", {}),
    }
    rng = np.random.default_rng(0)
    for name, ((width, height), mode, settings) in files.items():
        squares = rng.choice([0, 90, 255], (4, 5, 3)).astype(np.uint8)
        image = Image.fromarray(squares).resize((width, height), Image.Resampling.NEAREST)
        image.convert(mode).save(folder / name, **settings)
    return list(files)


def write_records(file: Path, names: list[str]) -> None:
    """Write a prompt, a talk and an edit for every picture."""
    records = []
    for number, name in enumerate(names):
        talks = {
            "draw": ([name], f"a b c {'d' * number}", "<image>"),
            "look": ([name], "<image>\nabc?", f"fed {'a' * number}"),
            "edit": ([name, names[number - 1]], "<image>cba", "abc <image>"),
            "talk": ([], "abc", "def"),
        }
        for kind, (images, question, answer) in talks.items():
            turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
            entry = {"id": f"{kind}-{name}", "images": images, "conversations": turns}
            records.append(entry)
    file.write_text(json.dumps(records))


def write_codebook(path: Path, is_square: bool, size: int = CODEBOOK_SIZE) -> Path:
    """Write a codebook of patches that real pictures use many of."""
    colours = np.random.default_rng(1).integers(0, 256, (size, 1, 1, 3))
    codebook = np.broadcast_to(colours, (size, 8, 8, 3)).astype(np.uint8)
    PatchQuantizer(codebook, SIDE * SIDE, is_square).save(path)
    return path


def write_janus_tokeniser(folder: Path, layout: Layout) -> Path:
    """Write a random image tokeniser under the names of one of Janus-Pro's two layouts."""
    import torch
    import transformers
    from safetensors.torch import save_file

    torch.manual_seed(1)
    model = transformers.JanusVQVAE(
        transformers.JanusVQVAEConfig(
            num_patches=JANUS_GRID,
            base_channels=32,
            channel_multiplier=[1, 1, 1, 1],
            num_res_blocks=1,
            latent_channels=32,
            num_embeddings=CODEBOOK_SIZE,
        )
    )
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    state = {f"model.vqmodel.{name}": tensor for name, tensor in model.state_dict().items()}
    if layout == "original":
        state = {original_name(name): tensor for name, tensor in state.items()}
    folder.mkdir()
    save_file(state, folder / "model.safetensors")
    model_type = "janus" if layout == "transformers" else "multi_modality"
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


def build_twice(folder: Path, tokeniser: Path, family: str) -> tuple[Path, Path]:
    """Build one folder of records with codes and one without, each with a text tokeniser.

    Args:
        folder: existing, and empty but for ``tokeniser``.
        tokeniser: of images.
        family: whose data to write; in the first folder, Janus-Pro looks at pictures.
    """
    is_janus = family == "janus_pro"
    write_records(folder / "records.json", write_pictures(folder / "pictures"))
    for name, path in (("offline", tokeniser), ("online", None)):
        options = BuildOptions(
            records=folder / "records.json",
            output=folder / name,
            image_tokenizer=path,
            image_root=folder / "pictures",
            image_area=SIDE * SIDE if is_janus else None,
            understanding_images="pictures" if is_janus else "codes",
        )
        build_shards(options)
        write_tokenizer(folder / name, family)
    return folder / "offline", folder / "online"
