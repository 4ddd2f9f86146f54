# Start a training script of this folder on all processes of this machine. Sourced by the scripts.
#
# Several machines: run the same command on each, with the variables NNODES, NODE_RANK (0 to
# NNODES-1), MASTER_ADDR and MASTER_PORT set. NPROC_PER_NODE overrides the number of processes,
# TORCHRUN_ARGS adds flags of torchrun (--max-restarts 3 --log-dir logs), SECONDS_TO_SAVE is the time
# that the processes have to save after SIGTERM (600). Slurm: examples/slurm/.

set -euo pipefail
repository=$(cd "$(dirname "$0")/.." && pwd)

# The environment that is active; else the one of `make install`.
if [[ -z ${PYTHON:-} && -z ${VIRTUAL_ENV:-} && -x $repository/.venv/bin/python ]]; then
    PYTHON=$repository/.venv/bin/python
fi
PYTHON=${PYTHON:-python3}

gpus=0
if command -v nvidia-smi > /dev/null; then
    # Without PyTorch, the check below says what is missing.
    gpus=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())" 2> /dev/null) || gpus=0
fi
if ((gpus > 0)); then
    processes=${NPROC_PER_NODE:-$gpus}
else
    processes=${NPROC_PER_NODE:-4}
    export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} # more threads than cores slow every process
fi
nodes=${NNODES:-1}

# A mistake in the flags, or a missing package, is one line here, before any process is started.
WORLD_SIZE=$((nodes * processes)) "$PYTHON" "$0" --check "$@"
for argument in "$@"; do
    [[ $argument == -h || $argument == --help ]] && exit 0
done

if ((nodes > 1)); then
    rendezvous=(
        --nnodes "$nodes" --node-rank "${NODE_RANK:?set NODE_RANK to 0 .. NNODES-1}"
        --master-addr "${MASTER_ADDR:?set MASTER_ADDR to the host of node 0}"
        --master-port "${MASTER_PORT:-29500}"
    )
else
    rendezvous=(--standalone)
fi
read -r -a more <<< "${TORCHRUN_ARGS:-}"
exec "$PYTHON" "$repository/examples/torchrun.py" "${rendezvous[@]}" --nproc-per-node "$processes" \
    ${more[@]+"${more[@]}"} "$0" "$@"
