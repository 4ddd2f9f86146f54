"""Writes WebDataset shards: one file, or a folder of them, all of it or nothing.

The folder holds ``shard-000000.tar``, ... and ``dataset.json``. A sample is a run of adjacent files
with one key; see ``sample_files``.
"""

import os
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Optional

import numpy as np

from megatron_aia.building.convert_records import Record
from megatron_aia.building.sample_files import RawImage, sample_files, task_of_record
from megatron_aia.shards.description import check_codebook_size, write_description
from megatron_aia.shards.folder import DESCRIPTION_FILE
from megatron_aia.shards.image_tokenizer import ImageTokenizer


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
        members = sample_files(record, codes, images, self._codes_suffix)
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
        codes_suffix: file type of image codes.
        image_tokenizer: made the codes; named in ``dataset.json``. None where there are none.
        samples_per_shard: samples of one tar file.
        overwrite: replace ``output`` if it is a data folder.

    Raises:
        ValueError: ``output`` exists and must not be replaced, or the codes do not fit 16 bits.
    """

    def __init__(
        self,
        output: str | Path,
        codes_suffix: str,
        image_tokenizer: ImageTokenizer | None,
        samples_per_shard: int = 5000,
        overwrite: bool = False,
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
        members = sample_files(record, codes, images, self._codes_suffix)
        self._shards.write({"__key__": f"{self.num_samples.total():09d}", **members})
        self.num_samples[task_of_record(record)] += 1

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
