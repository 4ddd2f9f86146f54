"""Package definition. Exact versions that were tested stand in constraints.txt."""

from setuptools import find_packages, setup

setup(
    name="megatron_aia",
    version="0.1.0",
    description="Unified multimodal training with Attention Interaction Alignment on Megatron-Core",
    license="Apache-2.0",
    python_requires=">=3.10,<3.14",
    packages=find_packages(include=["megatron_aia", "megatron_aia.*"]),
    package_data={
        "megatron_aia.aia": ["profiles/*.yaml"],
        "megatron_aia.building.demo": ["*.yaml"],
        "megatron_aia.evaluation": ["references/*.yaml"],
    },
    install_requires=[
        "fsspec",
        # The two ranges are those of megatron_aia/runtime/versions.py. megatron-core 0.17 and newer
        # need Python 3.12; pip finds 0.16.1 for 3.10 and 3.11.
        # NVIDIA's images have versions such as 2.11.0a0+1a2b3c.
        "torch>=2.11.0a0",
        "megatron-core>=0.16.1,!=0.17.0,<0.20",
        "numpy",
        "packaging",
        "pyyaml",
        "sentencepiece",
        "tensorboard",
        "tqdm",
        # megatron-core imports it from 0.18 on and does not ask for it. No version in
        # constraints.txt: PyTorch for CUDA brings the one it was built with.
        "triton; platform_system == 'Linux' and python_version >= '3.12'",
        "webdataset>=1.0",
    ],
    extras_require={
        # Inputs of tools/build_shards.py beyond JSON and tar files.
        "formats": ["datasets", "pyarrow"],
        "demo": ["matplotlib", "pillow", "scikit-image", "scikit-learn"],
        "hf": ["pillow", "safetensors", "tiktoken", "transformers>=4.52"],
        "http": ["aiohttp"],
        "s3": ["s3fs"],
        "gs": ["gcsfs"],
        # The range that megatron-core 0.16.1 declares; newer ones bound nothing. Built from source
        # against the torch that is there: see docs/gpu.md.
        "gpu": ["transformer-engine[pytorch]>=2.9,<2.12"],
        "dev": [
            *("aiohttp", "hypothesis", "mypy", "pytest", "pytest-xdist", "ruff", "types-PyYAML"),
            # Runs the fused kernels interpreted, and compiles them for a GPU that is not there.
            "triton>=3.7; platform_system == 'Linux' and platform_machine == 'x86_64'",
        ],
    },
)
