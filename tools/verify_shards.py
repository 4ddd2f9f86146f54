"""Find all that is wrong with data folders: cuts, damage, doubles, and what does not decode.

python tools/verify_shards.py FOLDER ... [--decode] [--repair-list FILE] [--write-index]

Every byte that a run may read is read. Exit code 0: all is well; 1: damage was found; 2: wrong use.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from megatron_aia.config.flags import parse_options
from megatron_aia.shards.problems import Problem, remedy
from megatron_aia.shards.verify import FolderReport, VerifyOptions, verify_folder

EXIT_DAMAGE = 1
EXIT_USER_ERROR = 2
_EXAMPLES = 3


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """Run the tool and return its exit code."""
    try:
        options = parse_options(VerifyOptions, arguments, __doc__)
        options.check()
        reports = [verify_folder(folder, options) for folder in options.folders]
        problems = [problem for report in reports for problem in report.problems]
        if options.repair_list is not None:
            write_repair_list(options.repair_list, problems)
    except (ValueError, OSError) as error:
        print(f"verify_shards: {error}", file=sys.stderr)
        return EXIT_USER_ERROR
    for report in reports:
        print("\n".join(describe(report)))
        if options.write_index:
            print(f"  index: {'written' if report.has_index else 'none, a run would refuse it'}")
    return EXIT_DAMAGE if problems else 0


def describe(report: FolderReport) -> list[str]:
    """Return lines: what is there, how many problems of each kind, and the first of them."""
    counts = ", ".join(f"{number} {task}" for task, number in sorted(report.num_samples.items()))
    state = "no problem found" if not report.problems else f"{len(report.problems)} problems"
    megabytes = report.num_bytes / 1e6
    lines = [f"{report.folder}: {report.num_shards} shards, {megabytes:.1f} MB, {counts}: {state}"]
    for kind, number in Counter(problem.kind for problem in report.problems).most_common():
        lines.append(f"  {number:>6}  {kind}")
        examples = [problem for problem in report.problems if problem.kind == kind]
        lines += [f"          {problem.shard}: {problem.text}" for problem in examples[:_EXAMPLES]]
        if number > _EXAMPLES:
            lines.append("          ...")
    return lines


def write_repair_list(path: Path, problems: Sequence[Problem]) -> None:
    """Write a JSON line for every problem."""
    with path.open("w") as file:
        for problem in problems:
            entry = {
                "shard": problem.shard,
                "offset": problem.offset,
                "key": problem.key,
                "kind": problem.kind,
                "problem": problem.text,
                "remedy": remedy(problem.kind),
            }
            file.write(json.dumps(entry) + "\n")


if __name__ == "__main__":
    sys.exit(main())
