"""Committed orders: to change one is to change the data of runs that go on from a checkpoint."""

from types import SimpleNamespace

from fake_index import fake_index

from megatron_aia.aia.roles import Task
from megatron_aia.data.mix_sources import mix_sources
from megatron_aia.data.mixture import Mixture, SampleAddress
from megatron_aia.data.mixture_plan import MixturePlan, MixtureSource, plan_blend, plan_tasks
from megatron_aia.data.phases import Phase
from megatron_aia.data.replacements import locate_usable
from megatron_aia.data.sample_reader import SampleReader

SEED = 1234
FIRST = fake_index("first", [Task.GENERATION, Task.UNDERSTANDING] * 9 + [Task.TEXT] * 4)
SECOND = fake_index("second", [Task.UNDERSTANDING] * 5 + [Task.GENERATION] * 7 + [Task.MIXED] * 3)


def mix(plan: MixturePlan, window_shards: int = 0) -> Mixture:
    folders = {"first": FIRST, "second": SECOND}
    return mix_sources(plan, SEED, folders.__getitem__, window_shards)


def by_task(ratio: str, window_shards: int = 0) -> Mixture:
    return mix(plan_tasks(("first", "second"), ratio), window_shards)


def order(mixture: Mixture, count: int) -> str:
    """Return the first samples as ``task index:sample/epoch``."""

    def text(address: SampleAddress) -> str:
        place = f"{address.index_number}:{address.sample_number}/{address.epoch}"
        return address.task.name[0] + place

    return " ".join(text(mixture.locate(position)) for position in range(count))


def test_order_of_two_tasks() -> None:
    mixture = by_task("1:1")
    assert mixture.fingerprint == "c26eea374e3d7c80"
    assert order(mixture, 40) == (
        "G0:12/0 U0:13/0 U1:2/0 G1:10/0 U0:3/0 G1:5/0 U1:0/0 G0:4/0 G0:2/0 U0:17/0 "
        "U0:15/0 G1:11/0 G0:6/0 U1:3/0 G0:10/0 U1:4/0 U0:5/0 G1:7/0 G0:0/0 U0:9/0 "
        "U1:1/0 G1:8/0 U0:1/0 G0:8/0 G0:14/0 U0:11/0 U0:7/0 G1:6/0 G1:9/0 U0:13/1 "
        "U0:17/1 G0:16/0 G0:12/1 U0:11/1 G1:8/1 U1:0/1 G1:5/1 U0:3/1 U1:2/1 G0:14/1"
    )
    far = mixture.locate(10**9 + 7)
    assert (far.index_number, far.sample_number, far.epoch) == (0, 15, 35714285)


def test_order_of_four_tasks() -> None:
    mixture = by_task("2:1:1:1")
    assert mixture.fingerprint == "ceb1528b1072c0d7"
    assert order(mixture, 40) == (
        "G0:12/0 G1:10/0 M1:14/0 T0:21/0 U0:13/0 U1:2/0 T0:18/0 G0:4/0 M1:13/0 G1:5/0 "
        "G1:11/0 G0:2/0 T0:19/0 M1:12/0 U0:3/0 U1:0/0 G0:10/0 T0:20/0 M1:12/1 G0:6/0 "
        "M1:14/1 G0:0/0 G1:7/0 T0:21/1 U0:17/0 G1:8/0 T0:19/1 G0:8/0 U0:15/0 M1:13/1 "
        "T0:20/1 G1:6/0 U1:3/0 G0:14/0 M1:14/2 M1:13/2 G1:9/0 U1:4/0 T0:18/1 G0:16/0"
    )
    far = mixture.locate(10**9 + 7)
    assert (far.index_number, far.sample_number, far.epoch) == (1, 5, 25000000)


def test_order_of_a_blend() -> None:
    mixture = mix(plan_blend([(2, "first"), (1, "second")]))
    assert mixture.fingerprint == "c2b37a96905c6617"
    assert order(mixture, 30) == (
        "M1:14/0 T0:20/0 G0:14/0 M1:12/0 U0:13/0 U0:9/0 G0:0/0 T0:19/0 U1:1/0 T0:21/0 "
        "G0:16/0 G1:5/0 U0:7/0 U1:3/0 G0:10/0 G0:12/0 U1:0/0 U0:5/0 G0:2/0 M1:13/0 "
        "G0:6/0 G1:7/0 U0:17/0 G0:4/0 U0:15/0 G1:6/0 T0:18/0 G1:11/0 G0:8/0 U0:3/0"
    )
    far = mixture.locate(10**9 + 7)
    assert (far.index_number, far.sample_number, far.epoch) == (0, 18, 30303030)


def test_order_of_phases() -> None:
    sources = (
        MixtureSource("drawing", ("second",), Task.GENERATION, limit=4),
        MixtureSource("asking", ("first",), Task.UNDERSTANDING),
        MixtureSource("rest", ("first",)),
    )
    phases = (Phase((1, 1, 0), 7), Phase((3, 0, 2), 13), Phase((1, 1, 1)))
    mixture = mix(MixturePlan(sources, phases))
    assert mixture.fingerprint == "0c8999faaadf975a"
    assert order(mixture, 30) == (
        "G0:8/0 U1:9/0 U1:5/0 G0:7/0 U1:7/0 G0:10/0 G0:5/0 U1:15/0 G0:7/1 G0:5/1 "
        "U1:5/0 G0:8/1 G0:5/2 G0:10/1 G0:8/2 U1:17/0 G1:0/0 G1:6/0 G0:7/2 G0:10/2 "
        "G1:12/0 U1:11/0 G0:10/3 G0:7/3 U1:13/0 U1:15/0 U1:1/0 G0:8/3 T1:18/0 G0:5/3"
    )
    far = mixture.locate(10**9 + 7)
    assert (far.index_number, far.sample_number, far.epoch) == (1, 17, 37037036)


def test_order_of_windows() -> None:
    """Four shards of the one task and three of the other, in two windows each."""
    mixture = by_task("1:1", window_shards=2)
    assert mixture.fingerprint == "581ed78cc13630e2"
    assert order(mixture, 30) == (
        "G1:10/0 U0:5/0 U0:1/0 G0:8/0 U0:3/0 G0:2/0 U1:2/0 G0:6/0 G0:0/0 U0:7/0 "
        "U1:0/0 G0:4/0 G1:11/0 U1:3/0 G1:7/0 U1:4/0 U1:1/0 G1:5/0 G0:16/0 U0:9/0 "
        "U0:13/0 G1:6/0 U0:11/0 G1:9/0 G0:10/0 U0:15/0 U0:17/0 G1:8/0 G0:12/0 U1:4/1"
    )
    far = mixture.locate(10**9 + 7)
    assert (far.index_number, far.sample_number, far.epoch) == (0, 5, 35714285)


def test_order_of_a_folder_that_is_named_twice() -> None:
    mixture = mix(plan_tasks(("first", "second", "first"), "3:2:1:2"))
    assert mixture.fingerprint == "219cd9eed2d84dd1"
    assert order(mixture, 20) == (
        "M1:13/0 G1:10/0 M1:14/0 U2:15/0 G1:8/0 G0:4/0 U2:3/0 T2:18/0 G1:7/0 U2:1/0 "
        "G2:8/0 M1:12/1 T0:20/0 M1:12/0 G0:12/0 U2:7/0 M1:13/1 M1:14/1 U0:11/0 U0:1/0"
    )


def test_replacements_of_corrupt_samples() -> None:
    """Two of three samples are damaged."""
    mixture = by_task("1:1")
    found = [locate_usable(mixture, p, lambda a: a.sample_number % 3 != 0) for p in range(30)]
    assert " ".join(f"{a.task.name[0]}{a.index_number}:{a.sample_number}" for a in found) == (
        "G0:12 U0:9 U1:3 G1:9 U0:3 G1:9 U1:0 G0:12 G0:0 U0:15 U0:15 G1:6 G0:6 U1:3 G0:12 U1:0 "
        "U0:3 G1:6 G0:0 U0:9 U1:0 G1:6 U0:15 G0:12 G0:12 U0:9 U0:9 G1:6 G1:9 U0:9"
    )


def test_dropped_prompts() -> None:
    dropped = [position for position in range(100) if by_task("1:1").drops_prompt(position, 0.2)]
    assert dropped == [3, 14, 27, 39, 70, 75, 94]


def test_fingerprint_of_the_data() -> None:
    """What a checkpoint remembers beside the position."""
    reader = SampleReader(
        mixture=by_task("3:2:1:2"),
        encoder=SimpleNamespace(fingerprint="prompt"),
        seq_length=128,
        codebook_size=10,
        cfg_drop_prob=0.1,
        overlong="truncate",
    )
    assert reader.fingerprint == "ad69a08ff0e3490e"
