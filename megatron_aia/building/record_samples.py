"""Records as samples that are read one by one, for commands that need a few and no shards."""

import logging
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from megatron_aia.building.convert_records import Record, RecordError
from megatron_aia.building.image_paths import find_image
from megatron_aia.building.sources import Source, convert_part, open_source
from megatron_aia.shards.pictures import decode_picture, read_pixel_size
from megatron_aia.shards.raw_sample import CorruptSampleError, Picture, RawSample

NO_SAMPLE = 255
"""In the place of the task of a record that is no sample."""
_RECORDS_AT_A_TIME = 1000
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _RecordPicture:
    """The ``Picture`` in a file, or in a record itself."""

    place: Path | bytes

    def decode(self) -> np.ndarray:
        """See ``Picture``."""
        return decode_picture(self._contents())

    def pixel_size(self) -> tuple[int, int]:
        """See ``Picture``."""
        return read_pixel_size(self._contents())

    def _contents(self) -> bytes:
        return self.place.read_bytes() if isinstance(self.place, Path) else self.place


class RecordSamples:
    """The records of a file, in the form of an index of shards.

    All of them are read once, for their tasks; those that are no samples are counted in a warning.

    Args:
        path: of any format that tools/build_shards.py reads.
        image_root: where the image paths of the records start.

    Raises:
        ValueError: the format is unknown, or the records cannot be read.
    """

    def __init__(self, path: Path, image_root: Path) -> None:
        self.folder = str(path)
        self._source: Source = open_source(path)
        self._image_root = image_root
        # A record may hold pictures, so none is kept.
        found = [_describe(record) for record in self._records(0, len(self._source))]
        self._keys = [f"{path.name}/{name}" for name, _, _ in found]
        self.tasks = np.array([task for _, task, _ in found], np.uint8)
        """uint8 ``[records]``, values of ``Task`` or ``NO_SAMPLE``."""
        wrong = Counter(reason for _, _, reason in found if reason)
        if wrong:
            reasons = "; ".join(f"{count} {reason}" for reason, count in wrong.most_common())
            counts = (wrong.total(), len(found))
            logger.warning("%s: %d of %d records are no samples: %s", path, *counts, reasons)

    def key(self, number: int) -> str:
        """Return the record's name, ``<file>/<id>``."""
        return self._keys[number]

    def read(self, number: int, codebook_size: int) -> RawSample:
        """Read one record, but no picture of it.

        Raises:
            CorruptSampleError: a code is outside ``[0, codebook_size)``.
            ValueError: the file has changed, or an image leads out of the root.
            OSError: it cannot be read.
        """
        record = next(self._records(number, number + 1))
        if isinstance(record, RecordError):
            raise ValueError(f"{self.folder} changed while it was read: {record}")
        images: list[np.ndarray | Picture] = []
        for image in record.images:
            if isinstance(image, np.ndarray):
                if image.size and not 0 <= image.min() <= image.max() < codebook_size:
                    raise CorruptSampleError(f"record {record.id}: a code is out of range")
                images.append(image.astype(np.int64))
            else:
                held = image if isinstance(image, bytes) else find_image(self._image_root, image)
                images.append(_RecordPicture(held))
        return RawSample(self.key(number), record.task, record.turns, tuple(images))

    def _records(self, start: int, stop: int) -> Iterator[Record | RecordError]:
        for first in range(start, stop, _RECORDS_AT_A_TIME):
            last = min(first + _RECORDS_AT_A_TIME, stop)
            yield from convert_part(self._source.part(first, last), first)


def _describe(record: Record | RecordError) -> tuple[str, int, str]:
    """Return name, task, and what is wrong."""
    if isinstance(record, RecordError):
        return record.record_id, NO_SAMPLE, record.reason
    return record.id, int(record.task), ""
