"""What a run shows of itself while it trains: a file of prompts and questions. No torch.

JSON lines. One with ``prompt`` asks for a picture and has the fields of ``Prompt``; one with
``question`` asks for an answer, and ``image`` may name a picture, from the folder of the file.
"""

from pathlib import Path

from megatron_aia.generation.prompts import (
    Prompt,
    check_names,
    check_text,
    read_json_lines,
    read_prompt,
)
from megatron_aia.generation.questions import AskedQuestion, FilePicture, with_tags


def read_sample_prompts(path: Path) -> list[Prompt | AskedQuestion]:
    """Read what a run is to draw and to answer.

    Raises:
        ValueError: the file cannot be read, asks for nothing, or a line holds something else.
    """
    asked: list[Prompt | AskedQuestion] = []
    for place, document in read_json_lines(path):
        kinds = document.keys() & {"prompt", "question"}
        if len(kinds) != 1:
            raise ValueError(f"{place}: a line has either 'prompt' or 'question'")
        if "prompt" in kinds:
            asked.append(read_prompt(place, document))
            continue
        check_names(place, document, ("question", "image"))
        pictures = []
        if "image" in document:
            picture = path.parent / check_text(place, document, "image")
            if not picture.is_file():
                raise ValueError(f"{place}: the picture {picture} is not there")
            pictures.append(FilePicture(picture))
        text = with_tags(check_text(place, document, "question"), len(pictures), place)
        asked.append(AskedQuestion(place, text, tuple(pictures)))
    if not asked:
        raise ValueError(f"{path} asks for nothing; write lines with 'prompt' or 'question'")
    return asked
