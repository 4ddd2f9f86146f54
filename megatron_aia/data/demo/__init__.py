"""A data folder of real photographs, made in seconds from pictures of installed packages."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from megatron_aia.data.convert_records import Record, convert_record
from megatron_aia.data.images import PatchQuantizer
from megatron_aia.data.optional import import_optional
from megatron_aia.data.sample import IMAGE_TAG
from megatron_aia.data.shard_writer import ShardFolder, check_output
from megatron_aia.data.tokenizer import train_sentencepiece

if TYPE_CHECKING:
    from PIL.Image import Image

VOCAB_SIZE = 512
CODEBOOK_SIZE = 512
PATCH_SIZE = 8
IMAGE_SIDE = 128
_MARGIN = 2 * PATCH_SIZE
# Crops that are whole patches apart share their patches, which leaves fewer to the codebook.
_CROP_CORNERS = ((0, 0), (_MARGIN, 0), (0, _MARGIN), (_MARGIN, _MARGIN))
_SAMPLES_PER_SHARD = 100
_TEMPLATE_TEXTS = ("You are a helpful assistant. USER: . ASSISTANT:", "0123456789*")


@dataclass(frozen=True)
class Picture:
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

    def load(self) -> "Image":
        """Return the square, ``IMAGE_SIDE + _MARGIN`` pixels wide."""
        image_module = import_optional("PIL.Image", "demo")
        package = import_optional(self.package, "demo")
        left, top, side = self.square
        box = (left, top, left + side, top + side)
        with image_module.open(Path(package.__file__).parent / self.file) as image:
            size = (IMAGE_SIDE + _MARGIN, IMAGE_SIDE + _MARGIN)
            return image.convert("RGB").crop(box).resize(size, image_module.Resampling.LANCZOS)

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


def read_pictures() -> list[Picture]:
    """Read ``pictures.yaml``."""
    entries = yaml.safe_load((Path(__file__).parent / "pictures.yaml").read_text(encoding="utf-8"))
    return [
        Picture(
            **{
                **entry,
                "square": tuple(entry["square"]),
                "prompts": tuple(entry["prompts"]),
                "talks": tuple(map(tuple, entry["talks"])),
            }
        )
        for entry in entries
    ]


def load_photographs() -> "dict[str, Image]":
    """Return one crop of every picture by name, just as it is encoded for training."""
    return {picture.name: next(_crops(picture.load())) for picture in read_pictures()}


def build_demo(output: str | Path, overwrite: bool = False) -> Counter[str]:
    """Write the demo's data folder: shards, ``codebook.npz`` and ``tokenizer.model``.

    Every picture gives four overlapping crops, and every crop a sample for each prompt and each
    conversation. Same packages, same bytes.

    Returns:
        Samples by task.

    Raises:
        ValueError: ``output`` must not be replaced, or a package is not installed.
    """
    check_output(Path(output), overwrite)
    pictures = read_pictures()
    squares = [picture.load() for picture in pictures]
    quantizer = PatchQuantizer.train(squares, CODEBOOK_SIZE, PATCH_SIZE, IMAGE_SIDE * IMAGE_SIDE)
    with ShardFolder(output, quantizer, _SAMPLES_PER_SHARD, overwrite) as shards:
        quantizer.save(shards.folder / "codebook.npz")
        train_sentencepiece(_texts(pictures), shards.folder / "tokenizer.model", VOCAB_SIZE)
        for picture, square in zip(pictures, squares, strict=True):
            for crop in _crops(square):
                codes = quantizer.encode(crop)
                for record in picture.records():
                    shards.add(record, [codes])
    return shards.num_samples


def _crops(square: "Image") -> "Iterator[Image]":
    for left, top in _CROP_CORNERS:
        yield square.crop((left, top, left + IMAGE_SIDE, top + IMAGE_SIDE))


def _texts(pictures: list[Picture]) -> list[str]:
    """Return what the text tokeniser is trained on."""
    talks = [text for picture in pictures for talk in picture.talks for text in talk]
    prompts = [prompt for picture in pictures for prompt in picture.prompts]
    return [*talks, *prompts, *_TEMPLATE_TEXTS * len(talks)]
