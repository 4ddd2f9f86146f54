"""All that is wrong with one shard."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from megatron_aia.shards.checksum import fits, has_checksum
from megatron_aia.shards.codes import decode_codes
from megatron_aia.shards.pictures import decode_picture
from megatron_aia.shards.problems import Problem, ProblemKind
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import CodesEntry, PictureEntry
from megatron_aia.shards.scan import MAX_IMAGE_BYTES, Member, SampleEntry, scan_shard
from megatron_aia.shards.shard import Read, Shard
from megatron_aia.shards.walk import ShardPart


@dataclass(frozen=True)
class ShardJob:
    """A shard, and how to verify it."""

    shard: Shard
    decode: bool
    """Decode pictures too."""
    codebook_size: int
    """Image codes are below this."""


@dataclass
class ShardResult:
    """The samples of a shard, and what is wrong with it."""

    part: ShardPart
    against_index: list[Problem] = field(default_factory=list)
    """For these, a run would make no index."""
    in_samples: list[Problem] = field(default_factory=list)
    """For these, a run would stop, or take other samples, when their turn comes."""


def verify_shard(job: ShardJob) -> ShardResult:
    """Read every byte of a shard that a run may read."""
    result = ShardResult(ShardPart.collect(job.shard, iter(())))
    without_checksum: list[SampleEntry] = []
    num_samples = 0
    read = job.shard.front_to_back()

    def verified() -> Iterator[SampleEntry]:
        nonlocal num_samples
        for sample in scan_shard(job.shard, result.against_index.append, read):
            result.in_samples += _verify_sample(job, sample, read)
            num_samples += 1
            if not has_checksum(sample.json):
                without_checksum.append(sample)
            yield sample

    try:
        result.part = ShardPart.collect(job.shard, verified())
    except (OSError, ValueError) as error:
        name = str(job.shard)
        problem = Problem(name, 0, "", "unreadable", str(error).removeprefix(f"{name}: "))
        result.against_index.append(problem)
    # A flipped bit may hide the checksum itself.
    if len(without_checksum) < num_samples:
        text = "its json has no checksum, unlike others of the shard"
        result.in_samples += [_problem(job, s, "checksum", text) for s in without_checksum]
    return result


def _verify_sample(job: ShardJob, sample: SampleEntry, read: Read) -> Iterator[Problem]:
    """Yield what is wrong with the files of a sample whose JSON is right."""
    entries = {entry.member: entry for entry in sample.description.images}
    for member in (*sample.members[1:], *sample.others):
        checksum = sample.description.checksums.get(member.suffix)
        if member.suffix not in entries and checksum is None:
            continue
        if member.size > MAX_IMAGE_BYTES:
            text = f"{member.size} bytes of {member.suffix} are over {MAX_IMAGE_BYTES}"
            yield _problem(job, sample, "member size", text)
            continue
        data = read(member.offset, member.size)
        if not fits(data, checksum):
            text = f"{member.suffix} does not fit its checksum"
            yield _problem(job, sample, "checksum", text)
        elif member.suffix in entries:
            yield from _decode(job, sample, member, entries[member.suffix], data)


def _decode(
    job: ShardJob,
    sample: SampleEntry,
    member: Member,
    entry: CodesEntry | PictureEntry,
    data: bytes,
) -> Iterator[Problem]:
    try:
        if isinstance(entry, CodesEntry):
            decode_codes(data, entry, job.codebook_size)
        elif job.decode:
            decode_picture(data)
    except CorruptSampleError as error:
        if isinstance(entry, CodesEntry):
            yield _problem(job, sample, "codes", str(error))
        else:
            yield _problem(job, sample, "picture", f"{member.suffix} {error}")


def _problem(job: ShardJob, sample: SampleEntry, kind: ProblemKind, text: str) -> Problem:
    text = f"sample {sample.key}: {text}"
    return Problem(str(job.shard), sample.offset, sample.key, kind, text)
