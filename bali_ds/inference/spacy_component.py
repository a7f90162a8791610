"""spaCy component `bali_ds_linker`: links the entities of a Doc to concepts."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from spacy.language import Language
from spacy.tokens import Doc, Span

from bali_ds.inference.linker import Candidate, Linker

CANDIDATES = "bali_ds_candidates"


@Language.factory(
    "bali_ds_linker",
    assigns=["doc.ents", "token.ent_kb_id"],
    default_config={"model": "", "names": "", "device": "cpu", "index": None, "top": 5, "lowest_score": 0.0,
                    "spans_key": None},
)  # fmt: skip
def make_linker(
    nlp: Language,  # noqa: ARG001 (spaCy passes it)
    name: str,  # noqa: ARG001
    model: str,
    names: str,
    device: str,
    index: str | None,
    top: int,
    lowest_score: float,
    spans_key: str | None,
) -> "SpacyLinker":
    """Return the component; its settings are those of `Linker.open` and `SpacyLinker`."""
    return SpacyLinker(Linker.open(model, names, device=device, index=index), top, lowest_score, spans_key)


class SpacyLinker:
    """Component that sets `kb_id_` of each span to the most similar concept and lists the candidates.

    Args:
        linker: the linker.
        top: candidates in `span._.bali_ds_candidates`.
        lowest_score: below this cosine a span stays unlinked.
        spans_key: link `doc.spans[spans_key]`; None links `doc.ents`.
    """

    def __init__(self, linker: Linker, top: int = 5, lowest_score: float = 0.0, spans_key: str | None = None) -> None:
        self.linker = linker
        self.top = top
        self.lowest_score = lowest_score
        self.spans_key = spans_key
        if not Span.has_extension(CANDIDATES):
            Span.set_extension(CANDIDATES, default=())

    def __call__(self, doc: Doc) -> Doc:
        """Link the spans of a document."""
        return next(self.pipe([doc]))

    def pipe(self, stream: Iterable[Doc], batch_size: int = 128) -> Iterator[Doc]:
        """Link the spans of documents; the mentions of a batch are encoded together."""
        documents = iter(stream)
        while batch := list(islice(documents, batch_size)):
            spans = [span for doc in batch for span in self._spans(doc)]
            mentions = list(dict.fromkeys(span.text for span in spans))
            found: dict[str, list[Candidate]] = dict(
                zip(mentions, self.linker.link(mentions, top=self.top) if mentions else [], strict=True)
            )
            for doc in batch:
                self._set_links(doc, found)
            yield from batch

    def _spans(self, doc: Doc) -> Iterable[Span]:
        return doc.ents if self.spans_key is None else doc.spans.get(self.spans_key, [])

    def _set_links(self, doc: Doc, found: dict[str, list[Candidate]]) -> None:
        linked = []
        for span in self._spans(doc):
            candidates = [each for each in found[span.text] if each.score >= self.lowest_score]
            cui: Any = candidates[0].cui if candidates else ""
            span = Span(doc, span.start, span.end, label=span.label, kb_id=cui, span_id=span.id)
            span._.set(CANDIDATES, tuple(candidates))
            linked.append(span)
        if self.spans_key is None:
            doc.ents = tuple(linked)
        elif linked:
            doc.spans[self.spans_key] = linked
