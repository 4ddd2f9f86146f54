"""Pictures and answers while training, from the prompts of a file: the same draws every time."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core.distributed import DistributedDataParallel

from megatron_aia.analysis.samples import ShownSample
from megatron_aia.config import Config
from megatron_aia.data.open import image_tokenizer_path
from megatron_aia.data.tokenizer import TextTokenizer
from megatron_aia.generation.answering import Answer, AnswerSettings, answer_questions
from megatron_aia.generation.decoder import chooser_of
from megatron_aia.generation.drawing import draw_pictures
from megatron_aia.generation.options import DrawingOptions
from megatron_aia.generation.picture_settings import PictureSettings, write_drawing
from megatron_aia.generation.prompts import Prompt
from megatron_aia.generation.questions import AskedQuestion
from megatron_aia.generation.sample_prompts import read_sample_prompts
from megatron_aia.generation.sampling import Sampling, row_key
from megatron_aia.generation.swap import decoding
from megatron_aia.models.image_tokenizers import load_image_tokenizer
from megatron_aia.models.inference import Drawing, Inference, Question
from megatron_aia.models.spec import ModelSpec
from megatron_aia.runtime.device import device
from megatron_aia.runtime.parallel import Parallel, broadcast_failure, gather_parameters
from megatron_aia.runtime.watchdog import watchdog
from megatron_aia.shards.image_tokenizer import ImageTokenizer
from megatron_aia.shards.raw_sample import IMAGE_TAG, Turn

_BATCH = 4
"""Pictures or questions that a replica works on at a time, beside the memory of training."""
_ANSWER = AnswerSettings(max_new_tokens=128, sampling=Sampling(temperature=0.0))

Work = Drawing | Question


class Sampler:
    """Draws and answers with the model that trains, as it is after a step.

    Nothing that training reads is changed: no gradient, no random state, no weight.

    Args:
        config: of the run.
        spec: of the model family.
        parallel: of the run.
        tokenizer: of the text.

    Raises:
        ValueError: on every rank, if a line of --sample-prompts cannot be asked of this model.
    """

    def __init__(
        self, config: Config, spec: ModelSpec, parallel: Parallel, tokenizer: TextTokenizer
    ) -> None:
        assert config.logging.sample_prompts is not None
        self._config, self._parallel = config, parallel
        self._asked = read_sample_prompts(Path(config.logging.sample_prompts))
        if spec.inference is None:
            raise ValueError(f"--sample-prompts: --model {spec.name} neither draws nor answers")
        self._inference = spec.inference(config, tokenizer)
        self._images: ImageTokenizer | None = None
        error: Exception | None = None
        found: list[Any] = [None]
        # One rank makes the codes of pictures: two could differ by a rounding.
        if dist.get_rank() == 0:
            try:
                self._images = self._load_images(spec)
                writer = spec.inference(config, tokenizer, self._images)
                self._settings = PictureSettings.resolve(DrawingOptions(), writer, config.run.seed)
                found[0] = (
                    [self._write(writer, asked) for asked in self._asked],
                    self._settings.guidance,
                )
            except (ValueError, OSError) as caught:
                error = ValueError(f"--sample-prompts: {caught}")
        broadcast_failure(error, parallel.control)
        dist.broadcast_object_list(found, src=0, group=parallel.control)
        self._work, self._guidance = found[0]

    def _load_images(self, spec: ModelSpec) -> ImageTokenizer | None:
        """Load the run's image tokeniser; the run's own random states stay.

        Raises:
            ValueError: there is none, and a picture is to be drawn.
        """
        path = image_tokenizer_path(self._config.data)
        if path is None:
            if any(isinstance(asked, Prompt) for asked in self._asked):
                raise ValueError("what makes pictures of codes is missing; add --image-tokenizer")
            return None
        with torch.random.fork_rng(devices=[]):
            area = spec.image_area(self._config)
            return load_image_tokenizer(path, area, str(device()))

    def _write(self, inference: Inference, asked: Prompt | AskedQuestion) -> Work:
        context = self._config.model.max_position_embeddings
        if isinstance(asked, Prompt):
            return write_drawing(inference, self._settings, asked, context)
        question = inference.question((Turn("human", asked.text),), asked.pictures, asked.key)
        if len(question.prompt) >= context:
            raise ValueError(f"{asked.key}: the question leaves no room for an answer")
        return question

    def run(self, models: list[DistributedDataParallel]) -> list[ShownSample]:
        """Return what the model draws and answers, on rank 0; every rank calls this together.

        Args:
            models: this rank's chunks, after an update.
        """
        gather_parameters(models)
        replicas = self._parallel.groups.dp_cp
        batches = list(self._batches())
        mine: dict[int, Any] = {}
        with decoding(models) as chunks:
            for batch in batches[replicas.rank() :: replicas.size()]:
                watchdog.at("samples")
                mine |= dict(zip(batch, self._make(chunks, batch), strict=True))
        if dist.get_rank() != chooser_of(self._parallel):
            mine = {}
        everywhere: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everywhere, mine, group=self._parallel.control)
        if dist.get_rank():
            return []
        made = {number: result for part in everywhere for number, result in part.items()}
        return [self._shown(number, made[number]) for number in range(len(self._work))]

    def _batches(self) -> Sequence[list[int]]:
        """Return numbers of lines, pictures and questions apart."""
        batches = []
        for kind in (Drawing, Question):
            numbers = [i for i, work in enumerate(self._work) if isinstance(work, kind)]
            batches += [numbers[i : i + _BATCH] for i in range(0, len(numbers), _BATCH)]
        return batches

    def _make(self, chunks: Sequence[Any], numbers: Sequence[int]) -> Sequence[Any]:
        work = [self._work[number] for number in numbers]
        keys = [row_key(self._config.run.seed, number) for number in numbers]
        model = (chunks, self._inference, self._parallel)
        if isinstance(work[0], Drawing):
            return draw_pictures(*model, work, keys, self._guidance)
        context = self._config.model.max_position_embeddings
        return answer_questions(*model, work, keys, _ANSWER, context)

    def _shown(self, number: int, result: Any) -> ShownSample:
        asked, work = self._asked[number], self._work[number]
        if isinstance(asked, Prompt):
            assert self._images is not None
            picture = self._images.decode(self._inference.codes(work, result))
            return ShownSample(number, asked.prompt, picture)
        assert isinstance(result, Answer)
        looked_at = str(asked.pictures[0].path) if asked.pictures else None
        text = asked.text.replace(IMAGE_TAG, "", len(asked.pictures))
        return ShownSample(number, text, answer=result.text, looked_at=looked_at)


def samples_are_due(config: Config, iteration: int) -> bool:
    """Return whether samples follow step ``iteration``."""
    last = iteration == config.training.train_iters
    return last or iteration % config.logging.sample_interval == 0
