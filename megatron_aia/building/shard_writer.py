"""Writes WebDataset shards; a sample is a run of adjacent files with one key, see ``sample_files``.

The same calls write the same bytes.
"""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import count, islice
from pathlib import Path

import numpy as np

from megatron_aia.building.convert_records import Record
from megatron_aia.building.sample_files import RawImage, sample_files, task_of_record

WrittenSample = tuple[Record, Sequence[np.ndarray | None], Sequence[RawImage | None]]
"""Arguments of ``ShardFile.add``: words, codes of the images, picture files."""


class ShardFile:
    """One shard while it is written, to be used in a ``with`` statement.

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
        """Write one sample.

        Args:
            number: the key is made of it.
            record: words, and where from.
            codes: integers ``[h, w]`` of each image, in the order of the tags; None for an image
                that has none.
            images: the picture files in the same order, None for those not to be stored; empty if
                none is.
        """
        members = sample_files(record, codes, images, self._codes_suffix)
        self._writer.write({"__key__": f"{number:09d}", **members})

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()


def write_shards(
    folder: Path,
    samples: Iterable[WrittenSample],
    codes_suffix: str,
    samples_per_shard: int,
) -> Counter[str]:
    """Write samples in order to ``shard-000000.tar``, ...; return their number by task.

    Args:
        folder: of the shards.
        samples: in order.
        codes_suffix: file type of image codes.
        samples_per_shard: samples of one tar file.
    """
    num_samples: Counter[str] = Counter()
    numbered = enumerate(samples)
    names = (f"shard-{number:06d}.tar" for number in count())
    while part := list(islice(numbered, samples_per_shard)):
        with ShardFile(folder / next(names), codes_suffix) as shard:
            for number, (record, codes, images) in part:
                shard.add(number, record, codes, images)
                num_samples[task_of_record(record)] += 1
    return num_samples
