"""Finding the records of a JSON list, against reading all of it: time and memory.

python benchmarks/json_records.py [--records 60000 240000]

Each measurement is a process of its own, so that its highest memory is its own.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

RANGE = 5000
"""Records of a shard."""


def write_records(path: Path, count: int) -> None:
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            turns = [
                {"from": "human", "value": "<image>\nWhat is to be seen here? " * 20},
                {"from": "gpt", "value": "An answer, with one é in it. " * 30},
            ]
            record = {"id": number, "image": f"{number}.jpg", "conversations": turns}
            file.write(("[" if number == 0 else ",\n") + json.dumps(record, ensure_ascii=False))
        file.write("]")


def find_records(path: Path) -> int:
    from megatron_aia.building.sources import open_source

    return len(open_source(path))


def find_and_read_range(path: Path) -> int:
    from megatron_aia.building.sources import open_source

    source = open_source(path)
    return sum(1 for _ in source.part(len(source) - RANGE, len(source)).read())


def read_all(path: Path) -> int:
    return len(json.loads(path.read_text(encoding="utf-8")))


WAYS: dict[str, Callable[[Path], int]] = {
    "find records": find_records,
    "find, read a range": find_and_read_range,
    "json.loads of all": read_all,
}


def measure(way: str, path: Path) -> None:
    """Print CPU seconds and megabytes above those of the imports."""
    import megatron_aia.building.sources  # noqa: F401

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    WAYS[way](path)
    seconds = time.process_time() - start
    megabytes = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{seconds} {megabytes}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, nargs="+", default=[60_000, 240_000])
    parser.add_argument("--measure", nargs=2)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure[0], Path(options.measure[1]))
        return
    print(f"{'records':>9}{'MB':>7}  {'':20}{'CPU s':>7}{'MB/s':>7}{'memory MB':>11}")
    for count in options.records:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "records.json"
            write_records(path, count)
            size = path.stat().st_size / 1e6
            for way in WAYS:
                command = [sys.executable, __file__, "--measure", way, str(path)]
                output = subprocess.run(command, check=True, capture_output=True, text=True)
                seconds, megabytes = map(float, output.stdout.split())
                print(
                    f"{count:>9}{size:>7.0f}  {way:20}{seconds:>7.2f}{size / seconds:>7.0f}"
                    f"{megabytes:>11.0f}"
                )


if __name__ == "__main__":
    main()
