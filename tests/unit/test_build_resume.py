"""Builds by several processes, and builds that are killed: always the same bytes."""

import contextlib
import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from megatron_aia.building.build import build_shards
from megatron_aia.building.options import BuildOptions
from megatron_aia.building.work_folder import WorkFolder
from megatron_aia.building.workers import Workers
from megatron_aia.shards.patch_quantizer import PatchQuantizer

image_module = pytest.importorskip("PIL.Image")

TOOL = Path(__file__).parents[2] / "tools" / "build_shards.py"
NUM_RECORDS = 23
NUM_DROPPED = 4
"""One without words, one without a picture, two with a damaged one."""


def write_input(folder, num_records=NUM_RECORDS, side=24):
    """Write records of several tasks, some of which do not fit, and their pictures."""
    folder.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    codebook = rng.integers(0, 256, (16, 4, 4, 3)).astype(np.uint8)
    PatchQuantizer(codebook, image_area=16 * 16).save(folder / "codebook.npz")
    records = []
    for number in range(num_records):
        pixels = rng.integers(0, 256, (side, side, 3)).astype(np.uint8)
        image_module.fromarray(pixels).save(folder / f"{number}.png")
        texts = ["a cat", "<image>"] if number % 2 else ["What?", "It"]
        image = f"{number}.png" if number % 5 else None
        if image is None:
            texts = ["Hello", "You"]
        records.append(
            {
                "id": f"r{number}",
                "image": image,
                "conversations": [
                    {"from": "human", "value": texts[0]},
                    {"from": "gpt", "value": texts[1]},
                ],
            }
        )
    records[3]["conversations"][0]["value"] = " "
    records[4]["image"] = "lost.png"
    for number in (11, 13):
        path = folder / f"{number}.png"
        path.write_bytes(path.read_bytes()[:300])
    (folder / "records.json").write_text(json.dumps(records))
    return folder


def options_for(folder, output, **changes):
    values = {
        "records": folder / "records.json",
        "output": output,
        "image_tokenizer": folder / "codebook.npz",
        "image_root": folder,
        "samples_per_shard": 4,
        "allow_dropped": NUM_DROPPED,
    }
    return BuildOptions(**{**values, **changes})


def contents_of(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_input(tmp_path_factory.mktemp("input"))


@pytest.fixture(scope="module")
def expected(source, tmp_path_factory):
    """What an undisturbed build makes."""
    output = tmp_path_factory.mktemp("expected") / "data"
    num_samples, dropped = build_shards(options_for(source, output))
    assert num_samples.total() == NUM_RECORDS - NUM_DROPPED
    assert dropped.reasons.total() == NUM_DROPPED
    assert [path.name for path in output.parent.iterdir()] == ["data"]
    return contents_of(output)


def test_every_dropped_record_is_listed(expected):
    lines = [json.loads(line) for line in expected["dropped.jsonl"].splitlines()]
    assert [(line["number"], line["id"], line["reason"]) for line in lines] == [
        (3, "r3", "a turn is empty"),
        (4, "r4", "the image is not there"),
        (11, "r11", "the image cannot be read"),
        (13, "r13", "the image cannot be read"),
    ]
    assert lines[1]["details"].endswith("lost.png")
    counts = json.loads(expected["dataset.json"])["dropped"]
    assert counts == {
        "a turn is empty": 1,
        "the image is not there": 1,
        "the image cannot be read": 2,
    }


@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_the_number_of_workers_changes_nothing(source, expected, tmp_path, num_workers):
    build_shards(options_for(source, tmp_path / "data", num_workers=num_workers))
    assert contents_of(tmp_path / "data") == expected
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


CALLS = ("mkdir", "unlink", "rmdir", "rename", "replace", "fsync", "open")
"""Functions of ``os`` that change what a later build finds."""


def build_until_call(options, number):
    """Build in a forked process that dies at its ``number``-th call; tell whether it came so far.

    The process ends without any clean-up, as by SIGKILL.
    """
    child = os.fork()
    if child == 0:
        try:
            calls = 0

            def dying(function):
                def call(*arguments, **settings):
                    nonlocal calls
                    calls += 1
                    if calls == number:
                        os._exit(9)
                    return function(*arguments, **settings)

                return call

            for name in CALLS:
                setattr(os, name, dying(getattr(os, name)))
            with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):
                build_shards(options)
            os._exit(0)
        except BaseException:
            os._exit(1)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert status in (0, 9), "the build itself failed"
    return status == 9


def finish(options):
    """Start the same command once more, unless all was done, up to the removal of a folder."""
    work = WorkFolder(options.output).path
    if work.exists() and options.output.exists() and not any(work.iterdir()):
        work.rmdir()
    elif work.exists() or not options.output.exists():
        build_shards(options)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """An input of which a build takes few calls, and its result."""
    source = write_input(tmp_path_factory.mktemp("small") / "input", num_records=15, side=8)
    options = options_for(source, source.parent / "whole", samples_per_shard=6)
    build_shards(options)
    return source, contents_of(options.output)


def test_a_build_may_die_at_any_call(small, tmp_path):
    source, expected = small
    number = 0
    while True:
        number += 1
        output = tmp_path / str(number) / "data"
        options = options_for(source, output, samples_per_shard=6)
        is_killed = build_until_call(options, number)
        if output.exists():
            assert contents_of(output) == expected, number
        finish(options)
        assert contents_of(output) == expected, number
        assert [path.name for path in output.parent.iterdir()] == ["data"], number
        if not is_killed:
            break
    assert number > 20


def test_a_build_that_replaces_may_die_at_any_call(small, tmp_path):
    source, expected = small
    before = options_for(source, tmp_path / "before", keep_images=True)
    build_shards(before)
    old = contents_of(before.output)
    number = 0
    while True:
        number += 1
        output = tmp_path / str(number) / "data"
        options = options_for(source, output, samples_per_shard=6, overwrite=True)
        shutil.copytree(before.output, output)
        is_killed = build_until_call(options, number)
        kept = WorkFolder(output).path / "replaced"
        # Between two renames the old folder is kept beside.
        assert contents_of(output if output.exists() else kept) in (old, expected), number
        build_shards(options)
        assert contents_of(output) == expected, number
        assert [path.name for path in output.parent.iterdir()] == ["data"], number
        if not is_killed:
            break


def test_a_build_may_die_again_and_again(source, tmp_path):
    whole = options_for(source, tmp_path / "whole", samples_per_shard=1)
    build_shards(whole)
    options = options_for(source, tmp_path / "data", samples_per_shard=1)
    rng = random.Random(0)
    kills = 0
    while not options.output.exists() and build_until_call(options, rng.randrange(1, 30)):
        kills += 1
    finish(options)
    assert kills > 5
    assert contents_of(options.output) == contents_of(whole.output)


def start_tool(options):
    flags = [
        *("--records", options.records, "--output", options.output),
        *("--image-tokenizer", options.image_tokenizer, "--image-root", options.image_root),
        *("--samples-per-shard", options.samples_per_shard),
        *("--allow-dropped", options.allow_dropped, "--num-workers", options.num_workers),
    ]
    return subprocess.Popen(
        [sys.executable, str(TOOL), *map(str, flags)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def journals(options):
    return sorted(WorkFolder(options.output).path.glob("range-*.json"))


def kill_when(options, condition):
    """Start the tool and kill all its processes when ``condition()``; tell whether it was so."""
    tool = start_tool(options)
    while not condition():
        if tool.poll() is not None:
            assert tool.returncode == 0, tool.stderr.read()
            return False
        time.sleep(0.001)
    os.killpg(tool.pid, signal.SIGKILL)
    tool.communicate()
    return True


@pytest.mark.parametrize(
    "moments", [(3,), pytest.param((1, 5, 12, 13, 20), marks=pytest.mark.slow)]
)
def test_processes_killed_with_sigkill(tmp_path, moments):
    """All processes of the real tool, when some ranges are done and others are at work."""
    source = write_input(tmp_path / "input", num_records=120, side=80)
    options = options_for(source, tmp_path / "data", num_workers=2)
    kept = {}
    for count in moments:
        assert kill_when(options, lambda count=count: len(journals(options)) >= count)
        assert not options.output.exists()
        # What was finished at the kill before was not built again.
        now = {path.name: path.stat().st_mtime_ns for path in journals(options)}
        assert kept.items() <= now.items() and count <= len(now) < 30
        kept = now
    build_shards(options)
    build_shards(options_for(source, tmp_path / "whole"))
    assert contents_of(options.output) == contents_of(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "input", "whole"]


@pytest.mark.slow
def test_workers_end_with_the_main_process(tmp_path):
    source = write_input(tmp_path / "input", num_records=400, side=200)
    options = options_for(source, tmp_path / "data", samples_per_shard=200, num_workers=2)
    tool = start_tool(options)
    while not any(WorkFolder(options.output).path.glob("shard-*.tmp")):
        assert tool.poll() is None
        time.sleep(0.001)
    os.kill(tool.pid, signal.SIGKILL)
    tool.wait()
    deadline = time.monotonic() + 30
    with pytest.raises(ProcessLookupError):
        while time.monotonic() < deadline:
            os.killpg(tool.pid, 0)
            time.sleep(0.1)


def leave_unfinished(options):
    """Let a build die when it has finished its second range."""
    number = 10
    while len(journals(options)) < 2:
        assert build_until_call(options, number), "it was finished before"
        number += 1


def test_another_input_or_option_does_not_go_on(source, tmp_path):
    mine = write_input(tmp_path / "input")
    options = options_for(mine, tmp_path / "data")
    leave_unfinished(options)
    before = journals(options)
    changes = {
        "--samples-per-shard": {"samples_per_shard": 5},
        "--keep-images": {"keep_images": True},
        "--image-root": {"image_root": source},
        "--image-tokenizer": {"image_area": 100},
    }
    for flag, change in changes.items():
        with pytest.raises(ValueError, match=rf"unfinished build with another .*{flag}.*repeat"):
            build_shards(options_for(mine, options.output, **change))
    text = (mine / "records.json").read_text()
    (mine / "records.json").write_text(text + " ")
    with pytest.raises(ValueError, match=r"unfinished build with another --records; .*--overwrite"):
        build_shards(options)
    assert journals(options) == before
    build_shards(options_for(mine, options.output, overwrite=True, allow_dropped=9, num_workers=1))
    build_shards(options_for(mine, tmp_path / "whole"))
    assert contents_of(options.output) == contents_of(tmp_path / "whole")


def test_a_shard_that_lost_bytes_is_built_again(source, expected, tmp_path):
    options = options_for(source, tmp_path / "data")
    leave_unfinished(options)
    shard = WorkFolder(options.output).shard(0)
    shard.write_bytes(bytes(shard.stat().st_size))
    build_shards(options)
    assert contents_of(options.output) == expected


def test_records_that_stopped_a_build_are_tried_again(tmp_path):
    """Damage behind a header shows while encoding; the good ranges are kept meanwhile."""
    source = write_input(tmp_path / "input")
    options = options_for(source, tmp_path / "data", samples_per_shard=2, allow_dropped=3)
    with pytest.raises(ValueError, match=r"the image cannot be read(.|\n)*--allow-dropped 4"):
        build_shards(options)
    good = [0, 3, 4]
    assert [path.name for path in journals(options)] == [f"range-{n:06d}.json" for n in good]
    kept = {n: WorkFolder(options.output).shard(n).stat() for n in good}
    for number in (11, 13):
        image_module.new("RGB", (24, 24)).save(source / f"{number}.png")
    _, dropped = build_shards(options)
    assert dropped.reasons.total() == 2
    for number, status in kept.items():
        now = (options.output / f"shard-{number:06d}.tar").stat()
        assert (now.st_ino, now.st_mtime_ns) == (status.st_ino, status.st_mtime_ns)
    build_shards(options_for(source, tmp_path / "whole", samples_per_shard=2))
    assert contents_of(options.output) == contents_of(tmp_path / "whole")


def test_a_disk_that_fails_drops_no_record(source, expected, tmp_path, monkeypatch):
    options = options_for(source, tmp_path / "data")
    opened = image_module.open

    def fail(place, *arguments, **settings):
        if Path(place).name == "14.png":
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(place))
        return opened(place, *arguments, **settings)

    leave_unfinished(options)
    kept = journals(options)
    with monkeypatch.context() as patch:
        patch.setattr(image_module, "open", fail)
        with pytest.raises(OSError, match=r"Input/output error.*14\.png"):
            build_shards(options)
    assert set(kept) <= set(journals(options))
    build_shards(options)
    assert contents_of(options.output) == expected


def test_two_builds_of_one_output(source, tmp_path):
    options = options_for(source, tmp_path / "data")
    with (
        WorkFolder(options.output),
        pytest.raises(ValueError, match=r"another process is building .*data; wait"),
    ):
        build_shards(options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_errors_of_workers_are_those_of_one_process(source, tmp_path, num_workers):
    lines = (json.dumps(entry) for entry in json.loads((source / "records.json").read_text()))
    broken = tmp_path / "records.jsonl"
    broken.write_text("\n".join([*lines, "{"]))
    options = options_for(source, tmp_path / "data", records=broken, num_workers=num_workers)
    with pytest.raises(ValueError, match=r"cannot read records from .*records\.jsonl"):
        build_shards(options)
    assert [path.name for path in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_killed_worker_is_one_line(source, tmp_path, monkeypatch):
    options = options_for(source, tmp_path / "data", num_workers=2)
    enter = Workers.__enter__

    def enter_and_kill(workers):
        enter(workers)
        for process in workers._processes.values():
            process.kill()
            process.join()
        return workers

    monkeypatch.setattr(Workers, "__enter__", enter_and_kill)
    with pytest.raises(ValueError, match=r"a worker process was killed.*the same command goes on"):
        build_shards(options)
