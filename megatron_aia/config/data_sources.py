"""How the command line names and weights the data: folders, weighted folders, a mixture file."""

import re
from pathlib import Path

from megatron_aia.config.tree import DataConfig

_MIXTURE_SUFFIXES = (".yaml", ".yml")
_NUMBER = re.compile(r"[-+]?[0-9.]+([eE][-+]?[0-9]+)?")
_RATIO_NUMBERS = (2, 3, 4)


def mixture_file(data: DataConfig) -> str | None:
    """Return the mixture file that --data-path names, or None if it names folders.

    Raises:
        ValueError: there is something beside the file.
    """
    files = [path for path in data.data_path if path.endswith(_MIXTURE_SUFFIXES)]
    if files and len(data.data_path) > 1:
        raise ValueError(
            f"--data-path {files[0]} is a mixture file and must stand alone; name the other "
            "folders in it"
        )
    return files[0] if files else None


def blend_pairs(data: DataConfig) -> list[tuple[int, str]]:
    """Return the weights and folders of --data-path; none if it does not begin with a weight.

    Raises:
        ValueError: they are not pairs of a whole number and a folder, or a folder stands twice.
    """
    words = data.data_path
    if not words or not _NUMBER.fullmatch(words[0]):
        return []
    given = f"--data-path {' '.join(words)}"
    if Path(words[0]).is_dir():
        raise ValueError(
            f"{given}: {words[0]} is a weight and a folder; write ./{words[0]} for the folder, "
            f"0{words[0]} for the weight"
        )
    if len(words) % 2:
        raise ValueError(
            f"{given} is not pairs; write weight folder, as in --data-path 2 A 1 B, and a folder "
            f"of the name {words[0]} as ./{words[0]}"
        )
    weights, folders = words[::2], words[1::2]
    for weight, folder in zip(weights, folders, strict=True):
        if not (weight.isascii() and weight.isdigit() and int(weight)):
            raise ValueError(
                f"{given}: the weight {weight} of {folder} is not a whole number from 1 on; for "
                "0.7 and 0.3 write 7 and 3"
            )
    twice = [folder for number, folder in enumerate(folders) if folder in folders[:number]]
    if twice:
        raise ValueError(f"{given}: {twice[0]} stands there twice; add its weights")
    return [(int(weight), folder) for weight, folder in zip(weights, folders, strict=True)]


def task_weights(ratio: str) -> tuple[int, ...]:
    """Return the four numbers of --task-ratio: generation, understanding, text, mixed.

    Raises:
        ValueError: they are not two to four whole numbers, or all of them 0.
    """
    parts = ratio.split(":")
    are_whole = all(part.isascii() and part.isdigit() for part in parts)
    if len(parts) not in _RATIO_NUMBERS or not are_whole or not any(map(int, parts)):
        raise ValueError(
            f"--task-ratio {ratio} is not a ratio of whole numbers; write "
            "generation:understanding[:text[:mixed]], as in 1:1 or 2:2:1"
        )
    numbers = [int(part) for part in parts]
    return (*numbers, *[0] * (max(_RATIO_NUMBERS) - len(numbers)))


def named_folders(data: DataConfig) -> list[str]:
    """Return the data folders that the command line names itself; none of a mixture file."""
    if mixture_file(data):
        return []
    pairs = blend_pairs(data)
    return [folder for _, folder in pairs] if pairs else list(data.data_path)


def check_data_sources(data: DataConfig) -> None:
    """Check that flags which name or weight data do not contradict each other.

    Raises:
        ValueError: naming the flag, its value and a remedy.
    """
    task_weights(data.task_ratio)
    file, pairs = mixture_file(data), blend_pairs(data)
    if (file or pairs) and data.task_ratio != DataConfig.task_ratio:
        remedy = "give weights to its sources" if file else "its weights take their place"
        raise ValueError(
            f"--task-ratio {data.task_ratio} weights the tasks of plain folders, not --data-path "
            f"{' '.join(data.data_path)}; leave it out, {remedy}"
        )
    if file and not Path(file).is_file():
        raise ValueError(f"--data-path {file} is not a file; name a mixture file or data folders")
