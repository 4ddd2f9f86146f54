"""S3, where ``s3fs`` and ``moto[server]`` are installed; they are no part of the extra ``dev``."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.corruption import write_sealed_shards
from support.tiny_data import CODEBOOK_SIZE

from megatron_aia.shards import object_store
from megatron_aia.shards.index import open_index
from megatron_aia.shards.raw_sample import CorruptSampleError

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")
boto3 = pytest.importorskip("boto3")


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[object]:
    """Serve a data folder as s3://bucket/data."""
    server = moto_server.ThreadedMotoServer(port=0, verbose=False)
    server.start()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.get_host_and_port()[1]}",
        "AWS_ACCESS_KEY_ID": "id",
        "AWS_SECRET_ACCESS_KEY": "key",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(object_store, "_WAITS", (0.01,))
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    for file in write_sealed_shards(tmp_path / "data").iterdir():
        client.upload_file(str(file), "bucket", f"data/{file.name}")
    yield client
    server.stop()


def test_a_folder_in_s3(tmp_path: Path, bucket: object) -> None:
    cache = tmp_path / "cache"
    local, index = open_index(tmp_path / "data", cache), open_index("s3://bucket/data", cache)
    assert index.fingerprint == local.fingerprint
    for number in range(len(local)):
        assert index.read(number, CODEBOOK_SIZE).turns == local.read(number, CODEBOOK_SIZE).turns
    for missing in ("s3://bucket/nowhere", "s3://nowhere/data"):
        with pytest.raises(ValueError, match=f"{missing}: no such folder"):
            open_index(missing, cache)
    shard = (tmp_path / "data" / "shard-000000.tar").read_bytes()
    bucket.put_object(Bucket="bucket", Key="data/shard-000000.tar", Body=shard[::-1])
    with pytest.raises(ValueError, match="changed since it was indexed") as caught:
        index.read(0, CODEBOOK_SIZE)
    assert not isinstance(caught.value, CorruptSampleError)
