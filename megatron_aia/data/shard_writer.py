"""Writes WebDataset shards: one file, or a folder of them, all of it or nothing.

The folder holds ``shard-000000.tar``, ... and ``dataset.json``. A sample is a run of adjacent files
with one key: ``KEY.json``, and for each of its images ``KEY.emu3.npy`` (``KEY.0.emu3.npy``,
``KEY.1.emu3.npy``, ... for several), uint16 ``[h, w]`` codes, or ``KEY.jpg`` or the like, the
picture file, or both. What the JSON says of them stands in ``index``.
"""

import io
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Optional, Protocol

import numpy as np

from megatron_aia.data.checksum import checksum, dump_with_checksum
from megatron_aia.data.convert_records import Record
from megatron_aia.data.images import ImageTokenizer

FORMAT_VERSION = 1
DESCRIPTION_FILE = "dataset.json"


class CodesOrigin(Protocol):
    """What ``dataset.json`` says of the image tokeniser."""

    @property
    def name(self) -> str:
        """Kind and content hash."""

    @property
    def codebook_size(self) -> int:
        """Every code is below it."""


@dataclass(frozen=True)
class RawImage:
    """A picture file that goes into the shard as it is."""

    suffix: str
    """File type without a dot, in small letters."""
    contents: bytes
    width: int
    height: int


class ShardFile:
    """One shard while it is written, to be used in a ``with`` statement; same calls, same bytes.

    Args:
        path: file to make. It is on the disk when the statement has ended.
        codes_suffix: file type of image codes.
    """

    def __init__(self, path: Path, codes_suffix: str) -> None:
        self._path = path
        self._codes_suffix = codes_suffix

    def __enter__(self) -> "ShardFile":
        import webdataset

        self._file = self._path.open("wb")
        self._writer = webdataset.TarWriter(self._file, encoder=False, mtime=0)
        return self

    def add(
        self,
        number: int,
        record: Record,
        codes: Sequence[np.ndarray | None],
        images: Sequence[RawImage | None] = (),
    ) -> None:
        """Write one sample under a key made of ``number``; otherwise as ``ShardFolder.add``."""
        members = sample_members(record, codes, images, self._codes_suffix)
        self._writer.write({"__key__": f"{number:09d}", **members})

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


class ShardFolder:
    """A data folder while it is written, to be used in a ``with`` statement.

    Everything goes to a hidden folder beside ``output``, which takes its place when the statement
    ends without an exception and is deleted otherwise. The same calls write the same bytes.

    Args:
        output: the folder to make.
        image_tokenizer: made the codes; named in ``dataset.json``. None where there are none.
        samples_per_shard: samples of one tar file.
        overwrite: replace ``output`` if it is a data folder.
        codes_suffix: file type of image codes.

    Raises:
        ValueError: ``output`` exists and must not be replaced, or the codes do not fit 16 bits.
    """

    def __init__(
        self,
        output: str | Path,
        image_tokenizer: ImageTokenizer | None,
        samples_per_shard: int = 5000,
        overwrite: bool = False,
        codes_suffix: str = "emu3.npy",
    ) -> None:
        if samples_per_shard < 1:
            raise ValueError(f"samples_per_shard {samples_per_shard} must be at least 1")
        if image_tokenizer:
            check_codebook_size(image_tokenizer)
        self._output = Path(output).absolute()
        check_output(self._output, overwrite)
        self._image_tokenizer = image_tokenizer
        self._samples_per_shard = samples_per_shard
        self._codes_suffix = codes_suffix
        self.folder = self._output.parent / f".{self._output.name}.{os.getpid()}.partial"
        """The hidden folder; files put here are part of the result."""
        self.num_samples: Counter[str] = Counter()
        self.dropped: Counter[str] = Counter()

    def __enter__(self) -> "ShardFolder":
        import webdataset

        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        pattern = str(self.folder).replace("%", "%%") + "/shard-%06d.tar"
        self._shards = webdataset.ShardWriter(
            pattern, maxcount=self._samples_per_shard, maxsize=1e12, verbose=0, mtime=0
        )
        return self

    def add(
        self,
        record: Record,
        codes: Sequence[np.ndarray | None],
        images: Sequence[RawImage | None] = (),
    ) -> None:
        """Write one sample.

        Args:
            record: words, and where from.
            codes: integers ``[h, w]`` of each image, in the order of the tags; None for an image
                that has none.
            images: the picture files in the same order, None for those not to be stored; empty if
                none is.
        """
        members = sample_members(record, codes, images, self._codes_suffix)
        self._shards.write({"__key__": f"{self.num_samples.total():09d}", **members})
        self.num_samples[task_name(record)] += 1

    def __exit__(
        self,
        error_type: Optional[type[BaseException]],
        error: Optional[BaseException],
        traceback: Optional[TracebackType],
    ) -> None:
        self._shards.close()
        if error is not None or not self.num_samples:
            shutil.rmtree(self.folder)
            if error is None:
                raise ValueError(f"no sample to write to {self._output}")
            return
        write_description(self.folder, self.num_samples, self._image_tokenizer, self.dropped)
        if self._output.exists():
            shutil.rmtree(self._output)
        self.folder.rename(self._output)


def task_name(record: Record) -> str:
    """Return the task of a record as the JSON of a sample has it."""
    return record.task.name.lower()


def sample_members(
    record: Record,
    codes: Sequence[np.ndarray | None],
    images: Sequence[RawImage | None],
    codes_suffix: str,
) -> dict[str, bytes]:
    """Return the files of one sample, suffix to contents; for the arguments see ``ShardFolder``."""
    images = images or [None] * len(codes)
    assert len(record.images) == len(codes) == len(images), f"{len(codes)} codes for {record}"
    prefixes = [""] if len(codes) == 1 else [f"{number}." for number in range(len(codes))]
    members: dict[str, bytes] = {}
    code_entries = [
        _add_codes(members, prefix + codes_suffix, grid)
        for prefix, grid in zip(prefixes, codes, strict=True)
    ]
    picture_entries = [
        _add_picture(members, prefix, image) for prefix, image in zip(prefixes, images, strict=True)
    ]
    description: dict[str, Any] = {
        "id": record.id,
        "task": task_name(record),
        "source": record.source,
        "license": record.license,
        "conversations": [{"from": turn.role, "value": turn.text} for turn in record.turns],
        "codes": code_entries if any(code_entries) else [],
    }
    if any(picture_entries):
        description["images"] = picture_entries
    members["json"] = dump_with_checksum(description)
    return members


def write_description(
    folder: Path,
    num_samples: Mapping[str, int],
    image_tokenizer: CodesOrigin | None,
    dropped: Mapping[str, int],
) -> None:
    """Write ``dataset.json``.

    Args:
        folder: of the shards.
        num_samples: by task.
        image_tokenizer: what made the codes; None where there are none.
        dropped: records that were left out, by reason.
    """
    shards = sorted(folder.glob("*.tar"))
    description = {
        "format_version": FORMAT_VERSION,
        "num_samples": dict(sorted(num_samples.items())),
        "codebook_size": image_tokenizer.codebook_size if image_tokenizer else 0,
        "image_tokenizer": image_tokenizer.name if image_tokenizer else "",
        "dropped": dict(sorted(dropped.items())),
        "shards": [{"name": shard.name, "size": shard.stat().st_size} for shard in shards],
    }
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")


def read_num_samples(folder: Path) -> Counter[str]:
    """Return the samples of a folder by task, from its ``dataset.json``."""
    return Counter(json.loads((folder / DESCRIPTION_FILE).read_bytes())["num_samples"])


def read_codebook_size(folder: Path) -> int:
    """Return the codebook size of a folder's codes, 0 without codes, from ``dataset.json``."""
    return int(json.loads((folder / DESCRIPTION_FILE).read_bytes())["codebook_size"])


def check_codebook_size(image_tokenizer: CodesOrigin) -> None:
    """Check that codes can be stored.

    Raises:
        ValueError: they do not fit 16 bits.
    """
    if image_tokenizer.codebook_size > 1 << 16:
        raise ValueError(f"codes of {image_tokenizer.name} do not fit 16 bits")


def check_output(output: Path, overwrite: bool) -> None:
    """Check that a data folder may be written to ``output``.

    Raises:
        ValueError: something is there that must not be replaced.
    """
    if not output.exists():
        return
    is_folder = output.is_dir()
    if is_folder and not any(output.iterdir()):
        return
    if not is_folder or not (output / DESCRIPTION_FILE).is_file():
        raise ValueError(f"{output} exists and is no data folder; choose another --output")
    if not overwrite:
        raise ValueError(f"{output} exists; pass --overwrite to replace it")


def _add_codes(
    members: dict[str, bytes], member: str, grid: np.ndarray | None
) -> dict[str, Any] | None:
    """Add the file of an image's codes and return its entry in the JSON."""
    if grid is None:
        return None
    members[member] = _to_npy(grid)
    height, width = grid.shape
    crc32 = checksum(members[member])
    return {"member": member, "height": height, "width": width, "crc32": crc32}


def _add_picture(
    members: dict[str, bytes], prefix: str, image: RawImage | None
) -> dict[str, Any] | None:
    """Add a picture file and return its entry in the JSON."""
    if image is None:
        return None
    member = prefix + image.suffix
    members[member] = image.contents
    crc32 = checksum(image.contents)
    return {"member": member, "width": image.width, "height": image.height, "crc32": crc32}


def _to_npy(codes: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, codes.astype(np.uint16), allow_pickle=False)
    return buffer.getvalue()
