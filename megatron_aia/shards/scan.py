"""One pass over a shard: which samples it holds, and whether it is whole."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from megatron_aia.shards.problems import Problem, ProblemKind, Report, printable, refuse
from megatron_aia.shards.raw_sample import CorruptSampleError
from megatron_aia.shards.reader import Description, parse_description
from megatron_aia.shards.shard import Read, Shard
from megatron_aia.shards.tar import list_members, split_name

MAX_JSON_BYTES = 1 << 24
MAX_IMAGE_BYTES = 1 << 28
"""Most bytes of the JSON, and of all images of a sample: a shard from elsewhere must not fill the
memory."""


@dataclass(frozen=True)
class Member:
    """Where the bytes of one file of a sample stand in its shard."""

    suffix: str
    """File name after the key and its dot, for example ``json`` or ``0.jpg``."""
    offset: int
    size: int


@dataclass(frozen=True)
class SampleEntry:
    """A sample found in a shard."""

    key: str
    offset: int
    """Byte of the shard where it begins."""
    json: bytes
    """Its JSON member."""
    description: Description
    members: tuple[Member, ...]
    """The JSON member, then the codes or the picture of each image tag, in order."""
    others: tuple[Member, ...]
    """Files that nobody reads, such as a picture beside codes."""


def scan_shard(
    shard: Shard, report: Report = refuse, read: Read | None = None
) -> Iterator[SampleEntry]:
    """Yield the samples of a shard in order.

    Args:
        shard: a shard.
        report: is told what is wrong. Samples with a problem are left out if it returns.
        read: reads the shard, if the caller reads along.

    Raises:
        ValueError: by default, if the shard is cut short or damaged, or a sample of it is not
            complete.
        OSError: it cannot be read.
    """
    read = read or shard.front_to_back()
    for key, group in groupby(_list_named(shard, report, read), key=lambda named: named[0]):
        files = [(member, header) for _, member, header in group]
        entry = _Sample(shard, report, read, key, files[0][1]).assemble(
            [member for member, _ in files]
        )
        if entry is not None:
            yield entry


@dataclass(frozen=True)
class _Sample:
    """The files of one key, while they become a sample."""

    shard: Shard
    tell: Report
    read: Read
    key: str
    offset: int

    def assemble(self, files: list[Member]) -> SampleEntry | None:
        members = {member.suffix: member for member in files}
        if len(members) < len(files):
            suffixes = [member.suffix for member in files]
            twice = next(suffix for suffix in suffixes if suffixes.count(suffix) > 1)
            self._report("duplicate member", f"{self.key}.{twice} is there twice")
            return None
        if "json" not in members:
            self._report_sample("missing member", f"no json beside {', '.join(members)}")
            return None
        if not self._is_small("json", members["json"].size, MAX_JSON_BYTES):
            return None
        data = self.read(members["json"].offset, members["json"].size)
        try:
            description = parse_description(data)
        except CorruptSampleError as error:
            self._report_sample("json", str(error))
            return None
        return self._find_images(data, description, members)

    def _find_images(
        self, data: bytes, description: Description, members: dict[str, Member]
    ) -> SampleEntry | None:
        used = ["json", *(entry.member for entry in description.images)]
        absent = [suffix for suffix in used if suffix not in members]
        if absent:
            names = ", ".join(map(printable, absent))
            self._report_sample("missing member", f"its {names} is missing")
            return None
        found = tuple(members[suffix] for suffix in used)
        # Several tags may name one member, which is then read for each.
        if not self._is_small("images", sum(m.size for m in found[1:]), MAX_IMAGE_BYTES):
            return None
        others = tuple(member for suffix, member in members.items() if suffix not in used)
        return SampleEntry(self.key, self.offset, data, description, found, others)

    def _is_small(self, what: str, num_bytes: int, limit: int) -> bool:
        if num_bytes > limit:
            self._report_sample("member size", f"{num_bytes} bytes of {what} are over {limit}")
        return num_bytes <= limit

    def _report_sample(self, kind: ProblemKind, text: str) -> None:
        self._report(kind, f"sample {self.key}: {text}")

    def _report(self, kind: ProblemKind, text: str) -> None:
        self.tell(Problem(str(self.shard), self.offset, self.key, kind, text))


def _list_named(shard: Shard, report: Report, read: Read) -> Iterator[tuple[str, Member, int]]:
    """Yield (sample key, member, byte of its header) of every file with a proper name."""
    for file in list_members(shard, report, read):
        key, suffix = split_name(file.name)
        if not suffix:
            fault = "not named KEY.SUFFIX"
        elif printable(file.name) != file.name:
            fault = "no printable name"
        elif file.name.startswith("/") or "/../" in f"/{file.name}":
            fault = "outside its folder"
        else:
            yield key, Member(suffix, file.offset, file.size), file.header
            continue
        text = f"member {printable(file.name)} is {fault}"
        report(Problem(str(shard), file.header, "", "member name", text))
