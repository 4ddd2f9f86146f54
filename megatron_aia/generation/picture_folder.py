"""A folder of drawn pictures: what it holds, what it says of itself, whether a command may go on.

::

    settings.yaml           how all of them are drawn; another command must say the same to go on
    pictures/00003-01.png   picture 1 of prompt 3; appears whole, after its codes
    codes/00003-01.npy      its codes, uint16 or larger, [rows, columns]
    pictures.jsonl          a line each, once all are there
    contact_sheet.png       small ones, a row a prompt
"""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from megatron_aia.generation.pictures import DrawnPicture, PictureRequest, png_bytes
from megatron_aia.generation.settings_file import open_results
from megatron_aia.runtime.atomic import write_file, write_text
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

RECORDS_FILE = "pictures.jsonl"
SHEET_FILE = "contact_sheet.png"
_THUMBNAIL, _CAPTION, _SHEET_ROWS = 128, 14, 32


class PictureFolder:
    """The folder of one command.

    Args:
        folder: made by ``open``.
        requests: all pictures; those of a prompt stand together.
        settings: that all pictures share, as plain values.
    """

    def __init__(
        self, folder: Path, requests: Sequence[PictureRequest], settings: Mapping[str, Any]
    ) -> None:
        self._folder, self._requests = folder, requests
        asked = json.dumps([[vars(request.asked), request.number] for request in requests]).encode()
        self._settings = {**settings, "requests": hashlib.sha256(asked).hexdigest()[:16]}
        self._names: list[str] = []
        prompt = -1
        for request in requests:
            prompt += request.number == 0
            self._names.append(f"{prompt:05d}-{request.number:02d}")

    def open(self) -> None:
        """Make the folder, or go on with it.

        Raises:
            ValueError: it holds something else, or pictures that were drawn otherwise.
        """
        hidden = {"requests": "other prompts"}
        open_results(self._folder, self._settings, hidden, ("pictures", "codes"))

    def is_done(self, number: int) -> bool:
        """Return whether a picture is there."""
        return self._picture(number).is_file()

    def save(self, number: int, picture: DrawnPicture) -> None:
        """Write a picture and its codes; the picture last, because it says that both are there."""
        codes = io.BytesIO()
        small = picture.codes.astype(np.min_scalar_type(max(int(picture.codes.max()), 1 << 15)))
        np.save(codes, small)
        write_file(self._codes(number), lambda file: file.write(codes.getvalue()))
        data = png_bytes(picture.image)
        write_file(self._picture(number), lambda file: file.write(data))

    def finish(self) -> None:
        """Write what describes all pictures."""
        lines = [json.dumps(self._record(i), ensure_ascii=False) for i in range(len(self._names))]
        write_text(self._folder / RECORDS_FILE, "\n".join(lines) + "\n")
        sheet = png_bytes(self._sheet())
        write_file(self._folder / SHEET_FILE, lambda file: file.write(sheet))

    def _record(self, number: int) -> dict[str, Any]:
        request = self._requests[number]
        shared = {name: value for name, value in self._settings.items() if name != "requests"}
        own = {name: value for name, value in vars(request.asked).items() if value is not None}
        own["image_number"] = request.number
        places = {"picture": self._picture(number), "codes": self._codes(number)}
        files = {name: str(path.relative_to(self._folder)) for name, path in places.items()}
        return {**files, **shared, **own}

    def _picture(self, number: int) -> Path:
        return self._folder / "pictures" / f"{self._names[number]}.png"

    def _codes(self, number: int) -> Path:
        return self._folder / "codes" / f"{self._names[number]}.npy"

    def _sheet(self) -> "Image":
        """Return the pictures of the first prompts, a row each below its words."""
        image_module = import_optional("PIL.Image", "hf")
        drawing_module = import_optional("PIL.ImageDraw", "hf")
        operations = import_optional("PIL.ImageOps", "hf")
        rows: list[list[int]] = []
        for number, request in enumerate(self._requests):
            if request.number == 0:
                rows.append([])
            rows[-1].append(number)
        rows = rows[:_SHEET_ROWS]
        height = _THUMBNAIL + _CAPTION
        size = (_THUMBNAIL * max(map(len, rows)), height * len(rows))
        sheet = image_module.new("RGB", size, "white")
        canvas = drawing_module.Draw(sheet)
        for y, row in enumerate(rows):
            words = (
                self._requests[row[0]].asked.prompt.encode("latin-1", "replace").decode("latin-1")
            )
            canvas.text((2, y * height + 1), words, fill="black")
            for x, number in enumerate(row):
                with image_module.open(self._picture(number)) as picture:
                    small = operations.contain(picture.convert("RGB"), (_THUMBNAIL, _THUMBNAIL))
                sheet.paste(small, (x * _THUMBNAIL, y * height + _CAPTION))
        return sheet
