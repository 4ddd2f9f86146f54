"""A data folder of real photographs, made in seconds from pictures of installed packages."""

import io
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from megatron_aia.aia.roles import Task
from megatron_aia.building.convert_records import Record, convert_record
from megatron_aia.building.demo.training import (
    train_patch_quantizer,
    train_residual_quantizer,
    train_sentencepiece,
)
from megatron_aia.building.sample_files import RawImage
from megatron_aia.building.shard_writer import WrittenSample, write_shards
from megatron_aia.building.work_folder import check_output
from megatron_aia.models.family import DemoForm, ModelFamily
from megatron_aia.runtime.atomic import staged
from megatron_aia.runtime.optional import import_optional
from megatron_aia.shards.description import write_description
from megatron_aia.shards.folder import CODEBOOK_FILE, TOKENIZER_FILE
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.patch_quantizer import PatchQuantizer
from megatron_aia.shards.raw_sample import IMAGE_TAG
from megatron_aia.shards.residual_quantizer import ResidualPatchQuantizer

if TYPE_CHECKING:
    from PIL.Image import Image

VOCAB_SIZE = 512
CODEBOOK_SIZE = 512
PATCH_SIZE = 8
_MARGIN = 2 * PATCH_SIZE
# Crops that are whole patches apart share their patches, which leaves fewer to the codebook.
_CROP_CORNERS = ((0, 0), (_MARGIN, 0), (0, _MARGIN), (_MARGIN, _MARGIN))
_SAMPLES_PER_SHARD = 100


@dataclass(frozen=True)
class DemoPicture:
    """A photograph of an installed package and the words that go with it."""

    name: str
    package: str
    file: str
    square: tuple[int, int, int]
    """Left, top and side in pixels of the part that is used."""
    source: str
    license: str
    prompts: tuple[str, ...]
    talks: tuple[tuple[str, ...], ...]
    """Question, answer, question, answer, ... of each conversation."""

    def load(self, side: int) -> "Image":
        """Return the square, ``side`` pixels wide."""
        image_module = import_optional("PIL.Image", "demo")
        package = import_optional(self.package, "demo")
        left, top, length = self.square
        box = (left, top, left + length, top + length)
        with image_module.open(Path(package.__file__).parent / self.file) as image:
            lanczos = image_module.Resampling.LANCZOS
            return image.convert("RGB").crop(box).resize((side, side), lanczos)

    def records(self) -> Iterator[Record]:
        """Yield a generation record a prompt, an understanding record a conversation."""
        for number, prompt in enumerate(self.prompts):
            yield self._record(f"prompt{number}", [prompt, IMAGE_TAG])
        for number, talk in enumerate(self.talks):
            yield self._record(f"talk{number}", list(talk))

    def _record(self, part: str, texts: list[str]) -> Record:
        speakers = ("human", "gpt") * (len(texts) // 2)
        entry = {
            "id": f"{self.name}-{part}",
            "image": self.file,
            "source": self.source,
            "license": self.license,
            "conversations": [
                {"from": speaker, "value": text}
                for speaker, text in zip(speakers, texts, strict=True)
            ],
        }
        return convert_record(0, entry)


def read_pictures() -> list[DemoPicture]:
    """Read ``pictures.yaml``."""
    entries = yaml.safe_load((Path(__file__).parent / "pictures.yaml").read_text(encoding="utf-8"))
    return [
        DemoPicture(
            **{
                **entry,
                "square": tuple(entry["square"]),
                "prompts": tuple(entry["prompts"]),
                "talks": tuple(map(tuple, entry["talks"])),
            }
        )
        for entry in entries
    ]


def load_photographs(grid_side: int) -> "dict[str, Image]":
    """Return one crop of every picture by name, just as it is encoded for training."""
    side = grid_side * PATCH_SIZE
    return {
        picture.name: next(_crops(picture.load(side + _MARGIN), side))
        for picture in read_pictures()
    }


def build_demo(
    output: str | Path,
    family: ModelFamily,
    overwrite: bool = False,
    grid_side: int = 0,
) -> Counter[str]:
    """Write the demo's data folder: shards, ``codebook.npz`` and ``tokenizer.model``.

    Every picture gives four overlapping crops, and every crop a sample for each prompt and each
    conversation. Same packages, same bytes.

    Args:
        output: the folder.
        family: whose tokens and images to write. Where it looks at pictures, they have the size
            of those that are drawn.
        overwrite: replace a data folder there.
        grid_side: codes along a side of an image; 0 takes the family's own.

    Returns:
        Samples by task.

    Raises:
        ValueError: ``output`` must not be replaced, a package is not installed, or the family has
            no demo.
    """
    check_output(Path(output), overwrite)
    form = family.demo
    if form is None:
        raise ValueError(f"--model {family.name} has no demo")
    side = (grid_side or form.grid_side) * PATCH_SIZE
    pictures = read_pictures()
    squares = [picture.load(side + _MARGIN) for picture in pictures]
    quantizer = _train_quantizer(squares, side * side, family)
    texts = _texts(pictures, form)
    shown = islice(zip(pictures, squares, strict=True), form.num_pictures)
    crops = (
        (picture, crop)
        for picture, square in shown
        for crop in islice(_crops(square, side), 1 if form.num_pictures else None)
    )
    samples = (
        sample for picture, crop in crops for sample in _samples(picture, crop, quantizer, family)
    )
    with staged(Path(output)) as folder:
        quantizer.save(folder / CODEBOOK_FILE)
        train_sentencepiece(texts, folder / TOKENIZER_FILE, VOCAB_SIZE, form.special_tokens)
        num_samples = write_shards(folder, samples, family.codes_suffix, _SAMPLES_PER_SHARD)
        write_description(folder, num_samples, quantizer, Counter())
    return num_samples


def _train_quantizer(
    squares: "list[Image]", image_area: int, family: ModelFamily
) -> PatchQuantizer | ResidualPatchQuantizer:
    sizes = (CODEBOOK_SIZE, PATCH_SIZE, image_area)
    if family.demo is not None and family.demo.code_depth:
        return train_residual_quantizer(squares, *sizes, family.demo.code_depth)
    is_square = family.understanding_images == "pictures"
    return train_patch_quantizer(squares, *sizes, is_square)


def _samples(
    picture: DemoPicture, crop: "Image", quantizer: ImageTokenizer, family: ModelFamily
) -> Iterator[WrittenSample]:
    """Yield a sample for each record of a picture, with the picture or with its codes."""
    codes, stored = quantizer.encode(crop), _store(crop)
    for record in picture.records():
        if family.understanding_images == "pictures" and record.task is Task.UNDERSTANDING:
            yield record, [None], [stored]
        else:
            yield record, [codes], []


def _crops(square: "Image", side: int) -> "Iterator[Image]":
    for left, top in _CROP_CORNERS:
        yield square.crop((left, top, left + side, top + side))


def _store(image: "Image") -> RawImage:
    file = io.BytesIO()
    image.save(file, "PNG")
    return RawImage("png", file.getvalue(), image.width, image.height)


def _texts(pictures: list[DemoPicture], form: DemoForm) -> list[str]:
    """Return what the text tokeniser is trained on."""
    talks = [text for picture in pictures for talk in picture.talks for text in talk]
    prompts = [prompt for picture in pictures for prompt in picture.prompts]
    return [*talks, *prompts, *form.template_texts * len(talks)]
