"""The converted model against the one it came from."""

from pathlib import Path

import torch

from megatron_aia.checkpoint.single_process_model import SingleProcessModel
from megatron_aia.config import ModelConfig
from megatron_aia.models.hugging_face import HFFormat, HFSource

TOLERANCE = 1e-4


def verify(
    hf_format: HFFormat,
    source: HFSource,
    model: ModelConfig,
    weights: SingleProcessModel,
    path: Path,
) -> list[tuple[str, str]]:
    """Compare the fp32 logits of the family's cases.

    Args:
        hf_format: of the model's family.
        source: the checkpoint that was converted.
        model: its architecture.
        weights: the model to load into.
        path: the converted checkpoint.

    Returns:
        Name of a case and what was found, for a reader.

    Raises:
        ValueError: the largest difference of a case is above 1e-4 of its largest logit.
    """
    cases = hf_format.verify_cases(model)
    expected = hf_format.reference_logits(source, cases)
    decoder = weights.load_model(path)
    rows = []
    for case, theirs in zip(cases, expected, strict=True):
        with torch.no_grad():
            ours = hf_format.own_logits(decoder, case)
        found = _compare(theirs, ours[..., : theirs.shape[-1]], case.segment_ids >= 0)
        rows.append((f"verified, {case.name}", found))
    return rows


def _compare(theirs: torch.Tensor, ours: torch.Tensor, real: torch.Tensor) -> str:
    theirs, ours = theirs[real], ours[real]
    difference = float((ours - theirs).abs().max())
    relative = difference / float(theirs.abs().max())
    agreement = float((ours.argmax(-1) == theirs.argmax(-1)).float().mean())
    found = (
        f"largest logit difference {difference:.1e} ({relative:.1e} of the largest logit), "
        f"top-1 agreement {agreement:.2%}"
    )
    # Written so that NaN fails too.
    if not relative <= TOLERANCE:
        raise ValueError(f"the converted model computes something else: {found}")
    return found
