""":"
# Train UniFork. This one file is both a bash script and a Python program:
#
#   bash examples/pretrain_unifork.sh [flags]       one process per GPU (4 on a CPU)
#   torchrun [torchrun's flags] examples/pretrain_unifork.sh [flags]
#
# torchrun starts every file with Python. For Python, all of this bash part is one string, begun by
# the first line; bash reads that line as `:`, which does nothing. Bash does not come back from
# launch.sh, where several machines are explained, and takes the Python part for a here-document.

. "$(dirname "$0")/launch.sh"

: << '# end of the Python part'
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # runs without `pip install` too

try:
    from megatron_aia.train import main
except ModuleNotFoundError as error:
    print(f"error: {error.name} is not installed; run `make install`", file=sys.stderr)
    sys.exit(2)

if __name__ == "__main__":
    main(gpu_preset="unifork_0_5b", cpu_preset="unifork_demo")
# end of the Python part
