"""Data folders behind URLs: the same samples as from files, or one clear line."""

import json
import os
import pickle
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from support.corruption import write_sealed_shards
from support.range_server import RangeServer, serve
from support.tiny_data import CODEBOOK_SIZE
from support.tools import run_tool
from toy_data import toy_encoder, toy_samples, write_folder, write_shard

from megatron_aia.config import Config, validate
from megatron_aia.config.files import with_values
from megatron_aia.data.open import build_step_loader
from megatron_aia.data.prefetch import Prefetcher
from megatron_aia.shards import index as index_module
from megatron_aia.shards import object_store, remote
from megatron_aia.shards.folder import read_description
from megatron_aia.shards.index import ShardIndex, open_index
from megatron_aia.shards.raw_sample import CorruptSampleError

pytest.importorskip("aiohttp")
pytest.importorskip("PIL.Image")


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(object_store, "_WAITS", (0.001,) * 5)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[RangeServer]:
    write_sealed_shards(tmp_path / "served")
    with serve(tmp_path / "served") as server:
        yield server


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def read_all(index: ShardIndex) -> list[tuple[object, ...]]:
    samples = [index.read(number, CODEBOOK_SIZE) for number in range(len(index))]
    return [
        (
            sample.key,
            sample.task,
            sample.turns,
            [(i if isinstance(i, np.ndarray) else i.decode()).tolist() for i in sample.images],
        )
        for sample in samples
    ]


def shard_of(server: RangeServer) -> Path:
    return sorted(server.folder.glob("*.tar"))[0]


def rewrite(path: Path) -> None:
    """Write a file of the same size, with other bytes and a later time."""
    before = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 5 * 10**9))


def test_samples_are_those_of_the_files(server: RangeServer, cache: Path) -> None:
    local = open_index(server.folder, cache)
    index = open_index(server.url, cache)
    assert index.fingerprint == local.fingerprint
    assert read_all(index) == read_all(local)
    assert not (server.folder / ".index").exists()


def test_the_index_is_kept(
    server: RangeServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fingerprint = open_index(server.url, cache).fingerprint
    monkeypatch.setattr(index_module, "walk_shard", None)
    assert open_index(server.url, cache).fingerprint == fingerprint


def test_requests_are_few(server: RangeServer, cache: Path) -> None:
    index = open_index(server.url, cache)
    assert len([path for path, _ in server.gets if path.endswith(".tar")]) == 2, "one a shard"
    for number in range(len(index)):
        server.gets.clear()
        sample = index.read(number, CODEBOOK_SIZE)
        assert len(server.gets) == 1, "JSON and codes come together"
        for image in sample.images:
            if not isinstance(image, np.ndarray):
                image.decode()
        pictures = sum(not isinstance(image, np.ndarray) for image in sample.images)
        assert len(server.gets) == 1 + pictures
        assert all(asked.startswith("bytes=") for _, asked in server.gets)


@pytest.mark.parametrize(
    "faults", [["500", "503", "", "429", "slow", ""], ["drop", "cut", "", "cut", "cut", "slow"]]
)
def test_passing_faults_change_nothing(server: RangeServer, cache: Path, faults: list[str]) -> None:
    expected = read_all(open_index(server.folder, cache))
    server.faults = faults * 10
    assert read_all(open_index(server.url, cache)) == expected
    assert len(server.gets) > 20


class ClientError(Exception):
    """What botocore raises, also as the cause of FileNotFoundError."""


ClientError.__module__ = "botocore.exceptions"


def not_found_by_s3() -> FileNotFoundError:
    error = FileNotFoundError("no such key")
    error.__cause__ = ClientError()
    return error


@pytest.mark.parametrize(
    ("error", "attempts"),
    [
        (ConnectionResetError("gone"), 6),
        (TimeoutError("late"), 6),
        (ClientError("slow down"), 6),
        (not_found_by_s3(), 1),
        (FileNotFoundError("gone"), 1),
        (PermissionError("no"), 1),
        (ValueError("a mistake"), 1),
    ],
)
def test_only_faults_that_may_pass_are_met_by_another_attempt(
    error: Exception, attempts: int
) -> None:
    calls = []

    def call() -> None:
        calls.append(1)
        raise error

    with pytest.raises(ValueError if isinstance(error, ValueError) else OSError):
        object_store.with_retries(call, "s3://bucket/x")
    assert len(calls) == attempts


def test_passing_faults_while_asking_for_sizes(server: RangeServer, cache: Path) -> None:
    server.head_faults, server.faults = ["500"] * 3, ["", "503", "503", "503"]
    assert len(open_index(server.url, cache)) == 8
    assert not server.head_faults and not server.faults


@pytest.mark.parametrize(
    ("fault", "words"),
    [("500", "500"), ("drop", "Disconnected"), ("cut", "in 6 attempts"), ("403", "403")],
)
def test_faults_that_stay_end_the_run(
    server: RangeServer, cache: Path, fault: str, words: str
) -> None:
    index = open_index(server.url, cache)
    server.gets.clear()
    server.faults = [fault] * 100
    with pytest.raises(OSError) as caught:
        index.read(0, CODEBOOK_SIZE)
    message = str(caught.value)
    assert message.startswith(f"{server.url}/shard-0") and words in message
    assert len(message.splitlines()) == 1
    # A lost connection is opened once more by the client itself.
    attempts = {"403": 1, "drop": 12}.get(fault, 6)
    assert len(server.gets) == attempts


def test_a_server_that_says_nothing_is_left(
    server: RangeServer, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = read_all(open_index(server.folder, cache))
    monkeypatch.setattr(object_store, "_READ_SECONDS", 0.2)
    server.faults = ["", "", "stall", "", "stall"]
    assert read_all(open_index(server.url, cache)) == expected


def test_a_server_without_ranges_is_refused(server: RangeServer, cache: Path) -> None:
    server.knows_ranges = False
    with pytest.raises(ValueError, match=r"shard-00000\d\.tar: the server sends whole files"):
        open_index(server.url, cache)


@pytest.mark.parametrize("compares", [True, False], ids=["412", "headers"])
@pytest.mark.parametrize("validators", [("etag",), ("date",), ("weak etag", "date")])
def test_a_changed_object_stops_the_run(
    server: RangeServer, cache: Path, validators: tuple[str, ...], compares: bool
) -> None:
    server.validators, server.compares = validators, compares
    index = open_index(server.url, cache)
    rewrite(shard_of(server))
    with pytest.raises(ValueError, match="changed since it was indexed") as caught:
        index.read(0, CODEBOOK_SIZE)
    assert not isinstance(caught.value, CorruptSampleError)


def test_a_folder_that_cannot_be_listed(server: RangeServer, cache: Path) -> None:
    description = server.folder / "dataset.json"
    noted = description.read_text()
    for text, words in (
        (noted.replace('"size": ', '"size": 9'), "upload it again"),
        (noted.replace("shard-000001", "shard-000009"), "shard-000009.tar: is not there"),
        (noted.replace("shard-000001.tar", "../secret"), "is no shard"),
        (noted.replace('"shards"', '"others"'), "no dataset.json there lists the shards"),
        ("{", "does not parse"),
    ):
        description.write_text(text)
        with pytest.raises((ValueError, OSError)) as caught:
            open_index(server.url, cache)
        assert words in str(caught.value) and len(str(caught.value).splitlines()) == 1
    description.unlink()
    assert read_description(server.url) is None
    with pytest.raises(ValueError, match="lists the shards; upload"):
        open_index(server.url, cache)


def test_damage_behind_a_url_is_that_of_the_sample(server: RangeServer, cache: Path) -> None:
    shard = shard_of(server)
    index = open_index(server.folder, cache)
    place = int(index.table.member_offsets[1])
    contents = bytearray(shard.read_bytes())
    contents[place + 130] ^= 1
    shard.write_bytes(contents)
    index = open_index(server.url, cache)
    with pytest.raises(CorruptSampleError, match=r"http://.*: sample .*checksum"):
        for number in range(len(index)):
            index.read(number, CODEBOOK_SIZE)
    code, out, _ = run_tool("verify_shards", server.url, "--num-workers", 2)
    assert code == 1 and "1  checksum" in out


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_gets_the_batches_of_the_files(tmp_path: Path, num_workers: int) -> None:
    folder = write_folder(
        tmp_path / "data", [*toy_samples("generation", 9), *toy_samples("understanding", 9)]
    )
    shards = [{"name": p.name, "size": p.stat().st_size} for p in sorted(folder.glob("*.tar"))]
    (folder / "dataset.json").write_text(json.dumps({"codebook_size": 100, "shards": shards}))
    with serve(folder) as server:
        steps = []
        for location in (str(folder), server.url):
            config = Config()
            config.data.data_path = (location,)
            config.data.data_cache_path = str(tmp_path / "cache")
            config.model.codebook_size = 100
            config.data.seq_length, config.data.global_batch_size = 64, 6
            data = build_step_loader(config, toy_encoder)
            prefetcher = Prefetcher(data, num_workers)
            tokens = [batch.tokens for i in range(3) for batch in prefetcher.step(6 * i)]
            prefetcher.close()
            steps.append(np.stack(tokens))
        np.testing.assert_array_equal(*steps)
    assert not (folder / ".index").exists()
    assert len(list((tmp_path / "cache").glob("*/index.json"))) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_reading_goes_on_after_fork_and_after_pickling(server: RangeServer, cache: Path) -> None:
    index = open_index(server.url, cache)
    expected = read_all(index)
    child = os.fork()
    if child == 0:
        os._exit(0 if read_all(index) == expected else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert read_all(pickle.loads(pickle.dumps(index))) == expected


@pytest.fixture
def stored(tmp_path: Path) -> Iterator[str]:
    """Put a data folder into fsspec's store in memory, which can be listed."""
    fsspec = pytest.importorskip("fsspec")
    store = fsspec.filesystem("memory")
    folder = write_sealed_shards(tmp_path / "stored")
    store.put(f"{folder}/", "/bucket/data/", recursive=True)
    yield "memory://bucket/data"
    store.rm("/bucket", recursive=True)


def test_a_store_that_lists_its_folders(tmp_path: Path, stored: str, cache: Path) -> None:
    index = open_index(stored, cache)
    assert read_all(index) == read_all(open_index(tmp_path / "stored", cache))
    assert run_tool("verify_shards", stored, "--num-workers", 0)[0] == 0
    with pytest.raises(ValueError, match="no such folder"):
        open_index("memory://bucket/nowhere", cache)


def test_a_store_is_asked_now_and_then(
    tmp_path: Path, stored: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index = open_index(stored, cache)
    index.read(0, CODEBOOK_SIZE)
    store = pytest.importorskip("fsspec").filesystem("memory")
    path = "/bucket/data/shard-000000.tar"
    shard = write_shard(tmp_path / "other.tar", toy_samples("text", 3)).read_bytes()
    store.pipe_file(path, (shard * 99)[: index.shards[0].size])
    with pytest.raises(ValueError, match="changed since it was indexed") as caught:
        index.read(0, CODEBOOK_SIZE)
    assert not isinstance(caught.value, CorruptSampleError), "before damage is told, it asks"
    index = open_index_of_whole(tmp_path, store, path, stored, cache)
    monkeypatch.setattr(remote, "_SECONDS_BETWEEN_CHECKS", 0)
    store.pipe_file(path, store.cat_file(path))
    with pytest.raises(ValueError, match="changed since it was indexed"):
        index.read(0, CODEBOOK_SIZE)


def open_index_of_whole(
    tmp_path: Path, store: object, path: str, stored: str, cache: Path
) -> ShardIndex:
    store.pipe_file(path, (tmp_path / "stored" / "shard-000000.tar").read_bytes())
    return open_index(stored, cache)


@pytest.mark.parametrize(
    "location",
    [
        "pipe:cat /etc/passwd",
        "pipe://cat",
        "file:///data",
        "ftp://host/data",
        "simplecache::http://host/data",
        "github://org:repo@main/data",
        "ssh://host/data",
        "local://data",
    ],
)
def test_urls_that_do_more_than_hand_out_bytes(location: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unsupported URL scheme"):
        open_index(location, tmp_path)
    config = with_values(Config(), {"data_path": (location,), "data_cache_path": str(tmp_path)})
    with pytest.raises(ValueError, match=r"--data-path .*unsupported URL scheme"):
        validate(config, 1)


def test_a_url_needs_a_place_for_its_index() -> None:
    config = with_values(Config(), {"data_path": ("s3://bucket/data",)})
    with pytest.raises(ValueError, match="name a folder for it by --data-cache-path"):
        validate(config, 1)
    with pytest.raises(ValueError, match="name a folder for it by --data-cache-path"):
        open_index("s3://bucket/data")
    code, _, err = run_tool("verify_shards", "s3://bucket/data", "--write-index")
    assert code == 2 and "--data-cache-path" in err


def test_a_missing_package_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"pip install 'megatron_aia\[s3\]'"):
        open_index("s3://bucket/data", cache)
