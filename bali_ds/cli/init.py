"""Command `init`: a commented recipe for the user's own data, and the commands that build the data."""

import argparse
import os
import shlex
import sys
from itertools import islice
from pathlib import Path

from bali_ds.doctor.machine import has_bf16_kernels
from bali_ds.errors import InputError

_GRAPH_SOURCES = ("--rrf", "--obo", "--mesh", "--edges")
_MUCH_TEXT = 1 << 30
_RECIPE = """\
# Recipe of the run {name}; every key and its default: bali-ds' documentation, "Keys of a recipe".
# Build the data once:
#   {build_graph}
#   {build_shards}
# then look at the batch, the steps and the memory, and train; the same command resumes an interrupted run:
#   bali-ds plan {file}
#   bali-ds train {file}
name: {name}
seed: 29

data:
  graph: {graph}
  shards: {shards}

text_encoder:
  path: {encoder}{weights}

# One loss aligns mentions in their passages, mentions and names by themselves, graph views, and concepts that no
# passage mentions. This was best for linking in the project's benchmark, as was data.fan_out: 0; compare on your graph.
objective:
  contrastive:
    further_views: [mention, name]
    other_concepts: 2
  masked_language_model: {{weight: {masked}}}{why_masked}

optimizer:
  text_learning_rate: {rate}
  graph_learning_rate: 5.0e-4  # of everything that is new

batch:
  passages: {passages}  # over all GPUs; more passages are more negatives
epochs: {epochs}
precision: {precision}
deepspeed: zero1  # zero2 or zero3 if the weights do not fit; `bali-ds plan` prints the memory of each

checkpoints:
  every: 500
validation:
  every: 500
"""


def add_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Add this group's commands to the program."""
    init = commands.add_parser(
        "init",
        help="write a commented recipe for your own graph and text",
        description="Write a commented recipe for your own graph and text, and print the commands that build the data. "
        "What is not given is asked for on a terminal.",
        epilog="example:\n  bali-ds init mine.yaml --rrf 2025AB/META --corpus medline:'baseline/*.xml.gz' "
        "--encoder michiyasunaga/BioLinkBERT-base",
    )
    init.add_argument("recipe", type=Path, metavar="RECIPE", help="YAML file to write")
    source = init.add_mutually_exclusive_group()
    for option, what in zip(_GRAPH_SOURCES, ("directory of UMLS RRF files", "OBO file", "MeSH descriptors as XML",
                                             "table of edges with names"), strict=True):  # fmt: skip
        source.add_argument(option, type=Path, metavar="PATH", help=f"source of the graph: {what}")
    init.add_argument("--corpus", metavar="FORMAT:PATH", help="documents, as for shards build")
    init.add_argument("--encoder", metavar="NAME", help="encoder to train: a directory or org/name on the Hub")
    init.set_defaults(run=_init)


def _init(options: argparse.Namespace) -> None:
    from bali_ds.config import parse_recipe
    from bali_ds.corpus.corpus_files import corpus_files
    from bali_ds.corpus.document import ReadReport
    from bali_ds.corpus.readers import read_documents
    from bali_ds.files import published_file
    from bali_ds.parsing import parse_yaml

    file: Path = options.recipe
    if file.exists():
        raise InputError(f"{file}: exists already; name another file, or remove it")
    if file.suffix not in (".yaml", ".yml"):
        raise InputError(f"{file}: name a file that ends in .yaml, for example {file}.yaml")
    reader, source = _source(options)
    if not source.exists():
        raise InputError(f"{source}: does not exist; pass the source of the graph with {', '.join(_GRAPH_SOURCES)}")
    corpus = options.corpus or _ask("documents, as FORMAT:PATH, for example pubtator:corpus.txt", "--corpus")
    form, documents = corpus_files(corpus)
    first = [document for path in documents[:1] for document in islice(read_documents(form, path, ReadReport()), 20)]
    link = "" if any(document.mentions for document in first) else " --link dictionary"
    encoder = options.encoder or _ask("encoder to train, a directory or org/name on the Hub", "--encoder")
    new, decoder = _kind_of_encoder(Path(encoder)) if Path(encoder).is_dir() else (False, False)
    gpus = _gpus()
    built = Path("shards/built") / file.stem
    text = _RECIPE.format(
        name=file.stem,
        file=shlex.quote(str(file)),
        graph=_beside(file, built / "graph"),
        shards=_beside(file, built / "shards"),
        encoder=_beside(file, Path(encoder)) if Path(encoder).is_dir() else encoder,
        weights="\n  weights: random  # this directory has no weights" if new else "",
        masked="0.1" if new and not decoder else "0",
        why_masked="  # new weights learn the language from it" if new and not decoder else "",
        rate="1.0e-3  # of new weights; 2e-5 to 5e-5 for a pretrained encoder" if new else "5.0e-5",
        build_graph=f"bali-ds graph build {reader} {shlex.quote(str(source))} --out {built}/graph",
        build_shards=f"bali-ds shards build --graph {built}/graph --corpus {shlex.quote(corpus)} "
        f"--tokenizer {shlex.quote(encoder)}{link} --validation 0.02 --out {built}/shards",
        passages=256 if gpus else 32,
        # an epoch of much text is enough, of little text it is a few minutes
        epochs=1 if sum(path.stat().st_size for path in documents) > _MUCH_TEXT else 3,
        precision=_precision(on_gpus=gpus > 0),
    )
    parse_recipe(parse_yaml(text, str(file)), str(file))  # a name that a run cannot have is an error now
    with published_file(file, "w") as stream:
        stream.write(text)
    print("".join(line.removeprefix("#   ") + "\n" for line in text.splitlines() if line.startswith("#   ")), end="")


def _kind_of_encoder(directory: Path) -> tuple[bool, bool]:
    """Return whether a model directory has no weights yet, and whether it is a decoder.

    Raises:
        InputError: its configuration or its weights cannot be read.
    """
    from bali_ds.model.decoder import is_decoder
    from bali_ds.model.pretrained import check_weight_files, has_weights, load_configuration

    new = not has_weights(directory)
    if not new:
        check_weight_files(directory)
    return new, is_decoder(load_configuration(directory))


def _beside(recipe: Path, path: Path) -> str:
    """Return a path as a recipe names it: relative to the recipe's folder."""
    return str(path) if path.is_absolute() else os.path.relpath(path, recipe.parent)


def _source(options: argparse.Namespace) -> tuple[str, Path]:
    for option in _GRAPH_SOURCES:
        if path := getattr(options, option.removeprefix("--")):
            return option, path
    return "--rrf", Path(_ask("directory of UMLS RRF files", "--rrf"))


def _ask(what: str, option: str) -> str:
    """Return an answer from the terminal.

    Raises:
        InputError: standard input is not a terminal, or the answer is empty.
    """
    if not sys.stdin.isatty():
        raise InputError(f"{option}: is missing: {what}")
    answer = input(f"{what}: ").strip()
    if not answer:
        raise InputError(f"{option}: is missing: {what}")
    return answer


def _precision(*, on_gpus: bool) -> str:
    """Return a precision that the ranks here compute in without emulating it."""
    if not on_gpus:
        return "fp32"
    return "bf16" if has_bf16_kernels("cuda") else "fp16"


def _gpus() -> int:
    try:
        import torch
    except ModuleNotFoundError:
        return 0
    return torch.cuda.device_count() if torch.cuda.is_available() else 0
