"""Settings of a shard build: the input files and the limits."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from bali_ds.corpus.document import Document, ReadReport
from bali_ds.corpus.readers import join_mentions, read_documents
from bali_ds.errors import InputError
from bali_ds.shards.neighbor_settings import NeighborSettings

_FORMATS_WITHOUT_MENTIONS = ("medline", "jats")


@dataclass(frozen=True)
class BuildSettings:
    """What determines the bytes of a shard set besides its inputs.

    Attributes:
        max_tokens: tokens per passage, including special tokens.
        max_name_tokens: tokens per concept name.
        stored_fan_out: neighbors stored with each concept.
        shard_samples: samples per tar.
        validation: fraction of the documents held out, chosen by their ids.
        keep_unlinked: keep passages without a linked mention.
        concept_cap: keep a passage only while one of its concepts is in fewer passages than this; 0 keeps all.
        neighbors: which facts are stored.
    """

    max_tokens: int = 128
    max_name_tokens: int = 32
    stored_fan_out: int = 32
    shard_samples: int = 4096
    validation: float = 0.0
    keep_unlinked: bool = False
    concept_cap: int = 0
    neighbors: NeighborSettings = field(default_factory=NeighborSettings)

    def check(self) -> None:
        """Check the limits.

        Raises:
            InputError: a number is out of range; its command-line option is named.
        """
        if self.max_tokens < 8:
            raise InputError(f"--max-tokens {self.max_tokens}: too few for a sentence; use at least 8")
        if max(self.max_tokens, self.stored_fan_out, self.max_name_tokens) > 65_536:
            raise InputError("--max-tokens, --stored-fan-out and --max-name-tokens: must be at most 65536")
        if self.stored_fan_out < 1 or self.max_name_tokens < 1 or self.shard_samples < 1:
            raise InputError("--stored-fan-out, --max-name-tokens and --shard-samples: must be at least 1")
        if not 0 <= self.validation < 1:
            raise InputError(f"--validation {self.validation}: must be a fraction from 0 to below 1")
        if self.concept_cap < 0:
            raise InputError(f"--concept-cap {self.concept_cap}: must be a number of passages, or 0 to keep all")


@dataclass(frozen=True)
class Corpus:
    """One input file and the origin of its mentions and its text.

    Attributes:
        format: a key of `corpus.readers.READERS`.
        path: the file.
        link: "gold" for the mentions in the file, "dictionary" to find them; "" for the default of the format.
        text: format and path of the file with the text, if this file contains only mentions.
    """

    format: str
    path: Path
    link: str = ""
    text: tuple[str, Path] | None = None

    @property
    def files(self) -> list[Path]:
        """The file and, if there is one, the file with its text."""
        return [self.path, *([self.text[1]] if self.text else [])]

    @property
    def uses_dictionary(self) -> bool:
        """Whether the dictionary linker finds the mentions."""
        default = not self.link and not self.text and self.format in _FORMATS_WITHOUT_MENTIONS
        return self.link == "dictionary" or default

    def documents(self, report: ReadReport) -> Iterator[Document]:
        """Yield the documents with the mentions in the files."""
        if self.text is None:
            return read_documents(self.format, self.path, report)
        if self.format != "pubtator":
            raise InputError(f"{self.path}: --text requires a --corpus of format pubtator, not {self.format}")
        return join_mentions(read_documents(self.text[0], self.text[1], report), self.path, report)
