"""DPG-Bench: one picture of four a prompt, and the text that its scorer writes. No torch.

::

    images/<prompt file>.png      four pictures of side R: (0, 0), (R, 0), (0, R), (R, R);
                                  nothing else stands there, every file is opened
    pictures/<prompt file>/0.png  to 3.png, what they are made of
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from megatron_aia.evaluation.result import Metric, judged_metric
from megatron_aia.generation.prompts import read_text
from megatron_aia.runtime.atomic import write_file
from megatron_aia.runtime.optional import import_optional

if TYPE_CHECKING:
    from PIL.Image import Image

_SCORE = re.compile(r"^DPG-Bench score: (\S+)$", re.MULTILINE)
_PART = re.compile(r"^\t(.+): (\S+)$", re.MULTILINE)
_PICTURE = re.compile(r"^.*\.png((?:, [\d.eE+-]+)+)$", re.MULTILINE)


class DPGBench:
    """The benchmark in one folder.

    Args:
        data: folder of prompt files (dpg_bench/prompts of the user's copy).
        folder: for pictures and results.

    Raises:
        ValueError: there are no prompts, or one is empty.
    """

    column, pictures = "DPG", 4

    def __init__(self, data: Path, folder: Path) -> None:
        self._folder = folder
        files = sorted(data.glob("*.txt")) if data.is_dir() else []
        if not files:
            raise ValueError(f"{data} has no *.txt; give dpg_bench/prompts of ELLA's repository")
        self._names = [file.stem for file in files]
        self.prompts = [read_text(file).strip() for file in files]
        for file, prompt in zip(files, self.prompts, strict=True):
            if not prompt:
                raise ValueError(f"{file} is empty")
        self.images = folder / "images"
        self.results = folder / "dpg_results.txt"
        """What the scorer writes."""

    @property
    def total(self) -> int:
        """Prompts of the whole benchmark."""
        return len(self.prompts)

    def prepare(self, count: int) -> None:
        """Make the folders, and remove what a killed command left half written."""
        self.images.mkdir(exist_ok=True)
        for leftover in self.images.glob(".*"):
            leftover.unlink()
        for name in self._names[:count]:
            (self._folder / "pictures" / name).mkdir(parents=True, exist_ok=True)

    def _path(self, prompt: int, number: int) -> Path:
        return self._folder / "pictures" / self._names[prompt] / f"{number}.png"

    def is_done(self, prompt: int, number: int) -> bool:
        """Return whether a picture is there."""
        return self._path(prompt, number).is_file()

    def save(self, prompt: int, number: int, image: "Image") -> None:
        """Write a picture."""
        write_file(self._path(prompt, number), lambda file: image.save(file, "PNG"))

    def finish(self, count: int) -> None:
        """Put the pictures of each prompt together.

        Raises:
            ValueError: pictures are no squares of one size, which the scorer cuts out.
        """
        image_module = import_optional("PIL.Image", "hf")
        for prompt, name in enumerate(self._names[:count]):
            grid: Image | None = None
            for number in range(self.pictures):
                with image_module.open(self._path(prompt, number)) as picture:
                    side = picture.width
                    if grid is None:
                        grid = image_module.new("RGB", (2 * side, 2 * side))
                    if picture.size != (grid.width // 2, grid.width // 2):
                        raise ValueError("DPG-Bench cuts squares of one size; leave --ratio out")
                    grid.paste(picture, (number % 2 * side, number // 2 * side))
            assert grid is not None
            write_file(self.images / f"{name}.png", lambda file, g=grid: g.save(file, "PNG"))  # type: ignore[misc]

    def side(self) -> int:
        """Return R, the side of one picture in pixels."""
        image_module = import_optional("PIL.Image", "hf")
        with image_module.open(self._path(0, 0)) as picture:
            return int(picture.width)

    def read(self, judge: str) -> Metric:
        """Read the scorer's text: the mean over prompts, 0 to 100.

        Raises:
            ValueError: it is not that of a scorer that has ended.
        """
        text = read_text(self.results)
        score = _SCORE.search(text)
        judged = len(_PICTURE.findall(text))
        if score is None or not judged:
            raise ValueError(f"{self.results} has no 'DPG-Bench score'; did the scorer end?")
        parts = {name: float(value) for name, value in _PART.findall(text)}
        return judged_metric(self.column, float(score[1]), judged, self.total, judge, parts)
