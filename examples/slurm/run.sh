# Start a training script on every node of a Slurm job. Sourced by the sbatch files of this folder:
#
#   . "$REPOSITORY/examples/slurm/run.sh" examples/pretrain_emu3_aia.sh [flags of the run]
#
# Variables, all of them optional:
#   VENV              environment to activate on every node; else python3 of the node or container
#   CONTAINER         image that srun starts (pyxis): a path to a .sqsh file, or a registry's name
#   CONTAINER_MOUNTS  what it sees of the host, as /data:/data,/home/me:/home/me
#   NPROC_PER_NODE    processes of a node; else one for each of its GPUs, or 4 on a CPU
#   MIN_NODES         nodes that the job goes on with when it loses some; else all of them
#   MAX_RESTARTS      failures of a process after which all start again from the newest checkpoint (3)
#   SECONDS_TO_SAVE   that the processes have to save after SIGTERM (600)
#   LOGS              folder of the logs, one file a process; else logs/<job>
#   REQUEUE           0 keeps a job that SIGTERM has ended from starting again (1)

script=$1
shift
nodes=${SLURM_JOB_NUM_NODES:-1}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
logs=${LOGS:-$PWD/logs/$SLURM_JOB_ID}
mkdir -p "$logs"

# What NCCL and gloo need to know of the network. Each node must resolve its own name to an address
# that the others reach; where it is 127.0.1.1, or there are several networks, name the interface:
#   export NCCL_SOCKET_IFNAME=ib0 GLOO_SOCKET_IFNAME=ib0   # or bond0, eth0: see `ip -brief address`
# InfiniBand is found by itself. To keep storage's or management's adapters out:
#   export NCCL_IB_HCA=mlx5_0,mlx5_1,mlx5_2,mlx5_3         # see `ibstat`; ^ in front excludes
# RoCE (Ethernet) needs its address entry and often a traffic class:
#   export NCCL_IB_GID_INDEX=3 NCCL_IB_TC=106              # see `show_gids`
# A fabric that loses links for a while: a longer time-out, 4 us * 2^22 a try, 7 tries.
#   export NCCL_IB_TIMEOUT=22 NCCL_IB_RETRY_CNT=7
export NCCL_DEBUG=${NCCL_DEBUG:-WARN} # INFO shows which network was taken
# Fewer out-of-memory errors where lengths of sequences vary.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-8}

container=()
if [[ -n ${CONTAINER:-} ]]; then
    container=(--container-image "$CONTAINER" --container-workdir "$REPOSITORY")
    container+=(--container-mounts "$REPOSITORY:$REPOSITORY,$logs:$logs${CONTAINER_MOUNTS:+,$CONTAINER_MOUNTS}")
fi

# Runs on each node. --standalone would be one node; c10d deals the ranks out as nodes arrive, and
# again after one is lost.
read -r -d '' on_node << 'NODE' || true
set -euo pipefail
if [[ -n ${VENV:-} ]]; then . "$VENV/bin/activate"; fi
PYTHON=${PYTHON:-$(command -v python3)}
gpus=$("$PYTHON" -c "import torch; print(torch.cuda.device_count())")
processes=${NPROC_PER_NODE:-$((gpus > 0 ? gpus : 4))}
exec "$PYTHON" "$REPOSITORY/examples/torchrun.py" --nnodes "$NODES" --nproc-per-node "$processes" \
    --rdzv-backend c10d --rdzv-endpoint "$HEAD_NODE:${MASTER_PORT:-29500}" --rdzv-id "$SLURM_JOB_ID" \
    --max-restarts "${MAX_RESTARTS:-3}" --log-dir "$LOG_FOLDER/node_$SLURM_NODEID" --redirects 3 --tee 0:3 \
    "$REPOSITORY/$SCRIPT" "$@"
NODE

export REPOSITORY HEAD_NODE=$head_node LOG_FOLDER=$logs SCRIPT=$script
export NODES=${MIN_NODES:-$nodes}:$nodes SECONDS_TO_SAVE=${SECONDS_TO_SAVE:-600}

# Slurm sends SIGTERM to this shell before the time limit (--signal=B:TERM), and to all processes when
# it preempts. torchrun hands it on; the run saves and ends.
stopped=
trap 'stopped=1; scancel --signal TERM "$SLURM_JOB_ID"' TERM
# One torchrun that fails ends all of them, where they are not to go on with fewer.
srun --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --kill-on-bad-exit="$((${MIN_NODES:-$nodes} == nodes))" \
    "${container[@]}" bash -c "$on_node" "$script" "$@" &
status=0
wait $! || status=$?
# A signal ends `wait`, not what it waits for.
while [[ -n $(jobs -pr) ]]; do
    status=0
    wait "$(jobs -pr | head -n 1)" || status=$?
done
if [[ -n $stopped && ${REQUEUE:-1} == 1 ]]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
