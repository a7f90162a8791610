"""Entity linking: the concepts whose names are most similar to a mention under an encoder."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bali_ds.directories import Output, published_directory
from bali_ds.errors import InputError
from bali_ds.files import read_json
from bali_ds.inference.concept_dictionary import ConceptDictionary, read_dictionary
from bali_ds.inference.encoder import Encoder, load
from bali_ds.inference.search import InvertedFile, nearest
from bali_ds.npy import open_npy

NAMES_A_CANDIDATE = 8
VECTORS = Output("the vectors of names", "index.json", ("names", "pooling", "width", "model"), ("vectors.npy",))


@dataclass(frozen=True)
class Candidate:
    """A candidate concept for a mention.

    Attributes:
        cui: identifier of the concept.
        name: the concept's name that is most similar to the mention.
        score: cosine of mention and name, -1 to 1.
    """

    cui: str
    name: str
    score: float


class Linker:
    """Linker that ranks the concepts of a dictionary by their most similar name."""

    def __init__(
        self,
        encoder: Encoder,
        dictionary: ConceptDictionary,
        vectors: NDArray[np.float32],
        *,
        approximate: bool = False,
    ) -> None:
        self.encoder = encoder
        self.dictionary = dictionary
        self.vectors = vectors
        self._inverted_file = InvertedFile(vectors) if approximate else None

    @classmethod
    def open(
        cls,
        model: Path | str,
        names: Path | str,
        *,
        device: str = "cpu",
        index: Path | str | None = None,
        approximate: bool = False,
    ) -> "Linker":
        """Return a linker of a model to the names of a graph directory, or of a dictionary file of CUI||name lines.

        Args:
            model: as for `bali_ds.load`.
            names: the graph or dictionary.
            device: device of the model.
            index: as for `build`.
            approximate: as for `build`.

        Raises:
            InputError: model, names or index cannot be used.
        """
        encoder = load(model, device=device)
        dictionary = read_dictionary(Path(names))
        return cls.build(encoder, dictionary, index=Path(index) if index else None, approximate=approximate)

    @classmethod
    def build(
        cls,
        encoder: Encoder,
        dictionary: ConceptDictionary,
        *,
        index: Path | None = None,
        approximate: bool = False,
        progress: bool = False,
    ) -> "Linker":
        """Return a linker; name vectors are computed, or read from a directory that an earlier call wrote.

        Args:
            encoder: the encoder.
            dictionary: the names.
            index: a directory for the name vectors: memory-mapped if it exists, otherwise written; None keeps them in
                memory only.
            approximate: search an inverted file of 8-bit vectors instead of all names: faster, but not exact.
            progress: show a progress bar.

        Raises:
            InputError: the directory holds the vectors of other names or of another model.
        """
        if index is None:
            vectors = encoder.encode(dictionary.names, progress=progress)
            return cls(encoder, dictionary, vectors, approximate=approximate)
        if not (index / VECTORS.marker).exists():
            _write(index, dictionary, encoder, encoder.encode(dictionary.names, progress=progress))
        return cls(encoder, dictionary, _read(index, dictionary, encoder), approximate=approximate)

    def link(self, mentions: Sequence[str], *, top: int = 5) -> list[list[Candidate]]:
        """Return up to `top` distinct concepts for each mention, most similar first."""
        queries, count = self.encoder.encode(mentions, query=True), top * NAMES_A_CANDIDATE
        found, scores = (
            self._inverted_file.nearest(queries, count)
            if self._inverted_file
            else nearest(queries, self.vectors, count)
        )
        return [self._candidates(*row, top) for row in zip(found.tolist(), scores.tolist(), strict=True)]

    def _candidates(self, names: list[int], scores: list[float], top: int) -> list[Candidate]:
        best: dict[str, Candidate] = {}
        for name, score in zip(names, scores, strict=True):
            if name < 0:  # an approximate search may return fewer
                continue
            for cui in self.dictionary.concepts_of(name):
                best.setdefault(cui, Candidate(cui, self.dictionary.names[name], score))
        return list(best.values())[:top]


def _identity(dictionary: ConceptDictionary, encoder: Encoder) -> dict[str, object]:
    digest = hashlib.sha256("\n".join(dictionary.names).encode()).hexdigest()
    weights = next(iter(encoder.model.parameters())).detach().float().cpu().numpy()
    return {
        "names": digest,
        "pooling": encoder.pooling,
        "width": encoder.width,
        "model": hashlib.sha256(weights.tobytes()).hexdigest(),
    }


def _write(index: Path, dictionary: ConceptDictionary, encoder: Encoder, vectors: NDArray[np.float32]) -> None:
    with published_directory(index, VECTORS) as working:
        np.save(working / "vectors.npy", vectors)
        (working / "index.json").write_text(json.dumps(_identity(dictionary, encoder), indent=2) + "\n")


def _read(index: Path, dictionary: ConceptDictionary, encoder: Encoder) -> NDArray[np.float32]:
    if read_json(index / "index.json") != _identity(dictionary, encoder):
        raise InputError(
            f"{index}: holds the vectors of other names or of another model; remove it or name another --index"
        )
    shape = (len(dictionary.names), encoder.width)
    return open_npy(index / "vectors.npy", np.float32, shape, f"remove {index} and run the command again")
