"""From a file of records to a folder of shards; every record is written or counted."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Optional

import numpy as np
from tqdm import tqdm

from megatron_aia.data.convert_records import Record, RecordError, convert_record, read_records
from megatron_aia.data.images import ImageTokenizer, load_image_tokenizer
from megatron_aia.data.janus_images import JanusQuantizer
from megatron_aia.data.optional import import_optional
from megatron_aia.data.pictures import check_header, decode_picture
from megatron_aia.data.shard_writer import RawImage, ShardFolder, check_output

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass
class BuildOptions:
    """Settings of ``build_shards``."""

    records: Path
    """JSON list, or JSON lines (*.jsonl), of conversation records."""
    output: Path
    """Folder to make."""
    image_tokenizer: Optional[Path] = None
    """Codebook file (*.npz), or a folder with the image tokeniser of Emu3 or Janus-Pro. Unset,
    every image is stored as a picture, for a run that makes codes itself."""
    image_root: Path = Path()
    """Where the image paths of the records start."""
    image_area: Optional[int] = None
    """Pixels of a picture before it is encoded; the tokeniser's own when unset."""
    understanding_images: Literal["codes", "pictures"] = "codes"
    """Store images to look at as codes, as Emu3 reads them, or as picture files for Janus-Pro."""
    samples_per_shard: int = 5000
    """Samples of one tar file."""
    keep_images: bool = False
    """Store the picture files too."""
    overwrite: bool = False
    """Replace a data folder at the output."""
    allow_dropped: int = 0
    """Most records that may be left out because they do not fit."""
    device: str = "cpu"
    """Torch device of the image tokeniser."""

    def stores_picture(self, is_drawn: bool) -> bool:
        """Return whether an image goes into the shards as its picture file alone."""
        if self.image_tokenizer is None:
            return True
        return self.understanding_images == "pictures" and not is_drawn


class Dropped:
    """Records that were left out, counted by reason."""

    def __init__(self, allowed: int) -> None:
        self._allowed = allowed
        self._examples: dict[str, RecordError] = {}
        self.reasons: Counter[str] = Counter()

    def add(self, error: RecordError) -> None:
        """Count one record."""
        self.reasons[error.reason] += 1
        self._examples.setdefault(error.reason, error)

    def table(self) -> str:
        """Return a line for each reason: how many, and the first record with it."""
        lines = [f"{n:>8}  {self._examples[reason]}" for reason, n in self.reasons.most_common()]
        return "\n".join(
            [f"{self.reasons.total()} records do not fit; by reason, the first:", *lines]
        )

    def check(self) -> None:
        """Raise ValueError with the table if there are more than allowed."""
        if self.reasons.total() > self._allowed:
            remedy = "correct them, or leave them out by --allow-dropped"
            raise ValueError(f"{self.table()}\n{remedy} {self.reasons.total()}")


def build_shards(options: BuildOptions) -> tuple[Counter[str], Dropped]:
    """Convert all records, encode their images and write them.

    Records and the headers of their pictures are checked before the first image is encoded, so
    that most mistakes show at once.

    Returns:
        Samples by task, and what was left out.

    Raises:
        ValueError: more records do not fit than allowed, or an option is wrong.
    """
    check_output(options.output, options.overwrite)
    dropped = Dropped(options.allow_dropped)
    check = partial(_check_images, options)
    _for_each_record(options.records, "check", check, dropped.add)
    dropped.check()

    tokenizer = _load_tokenizer(options)
    shards = ShardFolder(
        options.output,
        tokenizer,
        options.samples_per_shard,
        options.overwrite,
        "janus.npy" if options.stores_picture(is_drawn=False) else "emu3.npy",
    )

    def write(record: Record) -> None:
        stored = [
            _store(options, tokenizer, record, number) for number in range(len(record.images))
        ]
        shards.add(record, [codes for codes, _ in stored], [picture for _, picture in stored])

    def drop(error: RecordError) -> None:
        shards.dropped[error.reason] += 1
        dropped.add(error)
        dropped.check()

    dropped = Dropped(options.allow_dropped)
    with shards:
        _for_each_record(options.records, "encode", write, drop)
    return shards.num_samples, dropped


def _load_tokenizer(options: BuildOptions) -> ImageTokenizer | None:
    path = options.image_tokenizer
    if path is None:
        return None
    tokenizer = load_image_tokenizer(path, options.image_area, options.device)
    if isinstance(tokenizer, JanusQuantizer) and not options.stores_picture(is_drawn=False):
        raise ValueError(
            f"{path} is Janus-Pro's, which does not look at codes; pass "
            "--understanding-images pictures"
        )
    return tokenizer


def _check_images(options: BuildOptions, record: Record) -> None:
    """Check the headers of a record's pictures.

    Raises:
        RecordError: one is not there, or cannot be used.
    """
    for path, is_drawn in zip(record.images, record.drawn, strict=True):
        with _open_image(record, options.image_root / path) as image:
            if options.stores_picture(is_drawn):
                try:
                    check_header(image)
                except ValueError as error:
                    reason = "the image is no picture to store"
                    raise RecordError(record.id, reason, f"{path}: {error}") from None


def _store(
    options: BuildOptions, tokenizer: ImageTokenizer | None, record: Record, number: int
) -> tuple[np.ndarray | None, RawImage | None]:
    """Return the codes and the picture file of one image of a record, None for what it has not.

    Raises:
        RecordError: the picture is damaged or cannot be encoded.
    """
    path = options.image_root / record.images[number]
    if tokenizer is None or options.stores_picture(record.drawn[number]):
        picture = _keep(record, path)
        try:
            decode_picture(picture.contents)
        except ValueError as error:
            reason = "the image cannot be read"
            raise RecordError(record.id, reason, f"{path} {error}") from error
        return None, picture
    image = _load_image(record, path)
    try:
        codes = tokenizer.encode(image)
    except ValueError as error:
        raise RecordError(record.id, "the image cannot be encoded", str(error)) from error
    return codes, _keep(record, path) if options.keep_images else None


def _for_each_record(
    path: Path,
    label: str,
    use: Callable[[Record], None],
    drop: Callable[[RecordError], None],
) -> None:
    for number, entry in tqdm(read_records(path), label, unit=" records", mininterval=1):
        try:
            use(convert_record(number, entry))
        except RecordError as error:
            drop(error)


def _open_image(record: Record, path: Path) -> "Image":
    """Open a picture and read its header only.

    Raises:
        RecordError: it is not there, or no picture.
    """
    image_module = import_optional("PIL.Image", "demo")
    try:
        return image_module.open(path)
    except FileNotFoundError:
        raise RecordError(record.id, "the image is not there", str(path)) from None
    except (OSError, ValueError, SyntaxError, image_module.DecompressionBombError) as error:
        raise RecordError(record.id, "the image cannot be read", f"{path}: {error}") from error


def _load_image(record: Record, path: Path) -> "Image":
    """Read a whole picture, turned as its camera meant it.

    Raises:
        RecordError: it is not there, or damaged.
    """
    with _open_image(record, path) as image:
        try:
            return import_optional("PIL.ImageOps", "demo").exif_transpose(image).convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise RecordError(record.id, "the image cannot be read", f"{path}: {error}") from error


def _keep(record: Record, path: Path) -> RawImage:
    with _open_image(record, path) as image:
        suffix = {"JPEG": "jpg"}.get(image.format or "", (image.format or "bin").lower())
        return RawImage(suffix, path.read_bytes(), image.width, image.height)
