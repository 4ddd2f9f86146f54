# megatron_aia on NVIDIA's image, which brings PyTorch, Transformer Engine, apex and flash-attn:
#
#   docker build --tag megatron_aia .
#   docker run --gpus all --ipc host --network host -v /data:/data megatron_aia \
#       bash examples/pretrain_emu3_aia.sh --data-path /data/shards ...
#
# --ipc host: the processes that read ahead share memory, of which a container has 64 MB otherwise.
# Another month's image: --build-arg IMAGE=nvcr.io/nvidia/pytorch:YY.MM-py3. Its PyTorch must be 2.11
# or newer; the last step says so in one line if it is not.

ARG IMAGE=nvcr.io/nvidia/pytorch:26.05-py3
FROM ${IMAGE}

WORKDIR /workspace/megatron_aia
COPY setup.py README.md ./
COPY megatron_aia megatron_aia
COPY tools tools
COPY examples examples

# The image's own constraints (PIP_CONSTRAINT) keep its PyTorch. Never `pip install apex`: that is
# another package; NVIDIA's is in the image.
RUN python -m pip install --no-cache-dir --no-build-isolation --editable '.[hf,s3]' \
    && python -c "from megatron_aia.runtime.versions import check_versions; check_versions()"
