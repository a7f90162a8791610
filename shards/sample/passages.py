"""Generates passages that state the facts in sentences, with the span and the concept of each mention."""

import random
import re
from collections import Counter, defaultdict
from dataclasses import dataclass, field

from tables import Concept, Fact, by_preferred_name, rows, split

PASSAGES = 3000
FIRST_DOCUMENT = 90_000_001
FRACTION_OF_NAMES = 0.4
"""Fraction of a concept's mentions that use a name of the graph; the others use a text form."""
FRACTION_WITHOUT_NAMES = 0.25
"""Fraction of the concepts with text forms whose names in the graph occur in no passage."""
PERSONS = ("patient", "outpatient", "teacher", "farmer", "nurse", "cook", "driver", "neighbour", "student", "relative")
DRUGS = ("T116", "T121", "T195")
PROPER = frozenset(
    (
        *("Addison", "Alzheimer", "Basedow", "Bechterew", "Bell", "Charcot", "Cooley", "Crohn", "Cushing", "Down"),
        *("Duchenne", "Erb-Goldflam", "Graves", "Guillain-Barré", "Hodgkin", "Huntington", "Kahler", "Kanner", "Koch"),
        *("Lyme", "Ménière", "Parkinson", "Sjögren", "Stein-Leventhal", "Bacterium", "Borrelia", "Campylobacter"),
        *("Candida", "Diplococcus", "Escherichia", "Helicobacter", "Laverania", "Micrococcus", "Monilia"),
        *("Mycobacterium", "Papillomavirus", "Plasmodium", "Spirochaeta", "Staphylococcus", "Streptococcus"),
        *("Treponema",),
    )
)
"""First words of names that stay capitalized within a sentence."""
_SLOT = re.compile(r"\{([^}]+)\}")

Segment = tuple[str, str, str]
"""Text, entity type, identifiers; plain text has the type ""."""


@dataclass(frozen=True)
class Mention:
    """A span of a passage in code points, end exclusive."""

    start: int
    end: int
    text: str
    entity: str
    identifiers: str


@dataclass
class Writer:
    """Writes passages; counts facts, sentences and surface forms so that all are used evenly."""

    concepts: dict[str, Concept]
    facts: list[Fact]
    draw: random.Random
    used: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.cui = by_preferred_name(self.concepts)
        self.entity = {tui: entity for tui, _, _, entity in rows("semantic_types")}
        self.composites = [(phrase, [self.cui[name] for name in split(names)]) for phrase, names in rows("composites")]
        self.sentences = defaultdict(list)
        for relation, sentence in rows("sentences"):
            self.sentences[relation].append(sentence)
        self.about = defaultdict(list)
        for fact in self.facts:
            self.about[fact.head].append(fact)
            self.about[fact.tail].append(fact)
        worded = [cui for cui, concept in self.concepts.items() if concept.text_forms]
        self.silent = set(self.draw.sample(worded, round(FRACTION_WITHOUT_NAMES * len(worded))))

    def rarest(self) -> str:
        """Return the concept with the fewest mentions in relation to its surface forms."""
        forms = {cui: len(concept.text_forms) + 1 for cui, concept in self.concepts.items()}
        return min(forms, key=lambda cui: (self.used[cui] / forms[cui], self.draw.random()))

    def passage(self, topic: str) -> list[list[Segment]]:
        """Return the sentences of a passage about a concept, in segments."""
        count = self.draw.choices((1, 2, 3), (0.2, 0.45, 0.35))[0]
        facts = sorted(self.about[topic], key=lambda fact: (self.used[fact], self.draw.random()))[:count]
        chosen: dict[str, str] = {}
        sentences = [self.sentence(fact, chosen) for fact in facts]
        if self.draw.random() < 0.08:
            sentences.append(self.composite())
        if self.draw.random() < 0.1:
            sentences.append(self.unlinked())
        return sentences

    def sentence(self, fact: Fact, chosen: dict[str, str]) -> list[Segment]:
        """Return one sentence that states a fact, in segments; `chosen` maps concepts to their form in the passage."""
        self.used[fact] += 1
        others = [
            other.tail
            for other in self.about[fact.head]
            if other.relation == fact.relation and other.head == fact.head and other.tail != fact.tail
        ]
        kind = "drug_isa" if self.of_drug(fact) else fact.relation
        choice = [text for text in self.sentences[kind] if others or "{c}" not in text]
        slots = {"a": fact.head, "b": fact.tail, "c": self.draw.choice(others) if others else ""}
        person = self.draw.choice(PERSONS)

        def fill(slot: str) -> Segment:
            return (person, "", "") if slot == "person" else self.mention(slots[slot], chosen)

        return segments(self.least_used(choice), fill)

    def of_drug(self, fact: Fact) -> bool:
        """Return whether a fact classifies a drug."""
        return fact.relation == "isa" and self.concepts[fact.head].semantic_type in DRUGS

    def mention(self, cui: str, chosen: dict[str, str]) -> Segment:
        """Return a mention of a concept by its least used surface form, or by its form in this passage."""
        concept = self.concepts[cui]
        if cui not in chosen:
            forms = dict.fromkeys(concept.text_forms, (1 - FRACTION_OF_NAMES) / max(1, len(concept.text_forms)))
            if cui not in self.silent:
                forms |= dict.fromkeys(concept.names, FRACTION_OF_NAMES / len(concept.names))
            due = {form: (self.used[cui, form] + self.draw.random()) / share for form, share in forms.items()}
            form = min(due, key=lambda form: due[form])
            self.used[cui, form] += 1
            self.used[cui] += 1
            chosen[cui] = lower_first(form) if form in concept.names else form
        return chosen[cui], self.entity[concept.semantic_type], cui

    def composite(self) -> list[Segment]:
        """Return a sentence with one phrase that refers to two concepts."""
        phrase, cuis = self.draw.choice(self.composites)
        entity = self.entity[self.concepts[cuis[0]].semantic_type]
        return segments(self.least_used(self.sentences["composite"]), lambda _: (phrase, entity, "|".join(cuis)))

    def unlinked(self) -> list[Segment]:
        """Return a sentence with a mention of no concept of the graph."""
        missing = self.draw.choice(("-", "-1"))
        return segments(self.least_used(self.sentences["unlinked"]), lambda slot: (slot[2:], "Other", missing))

    def least_used(self, texts: list[str]) -> str:
        """Return the least used sentence; ties are broken at random."""
        text = min(texts, key=lambda text: (self.used[text], self.draw.random()))
        self.used[text] += 1
        return text


def segments(sentence: str, fill) -> list[Segment]:
    """Return a sentence in segments, with its slots filled and its first letter in upper case."""
    parts = _SLOT.split(sentence)
    found = [fill(part) if place % 2 else (part, "", "") for place, part in enumerate(parts)]
    found = [segment for segment in found if segment[0]]
    first = found[0]
    head = first[0][0].upper() if first[0][0].isascii() else first[0][0]
    return [(head + first[0][1:], *first[1:]), *found[1:]]


def lower_first(name: str) -> str:
    """Return a name as written within a sentence: "Gout" becomes "gout"; "TP53 gene" and "Crohn disease" stay."""
    word = name.split(" ")[0]
    common = word[1:2].isalpha() and word[1:].islower() and not word.endswith("'s") and word not in PROPER
    return name[0].lower() + name[1:] if common else name


def write_documents(concepts: dict[str, Concept], facts: list[Fact], seed: int) -> list[str]:
    """Return every document of the corpus in PubTator form."""
    writer = Writer(concepts, facts, random.Random(seed))
    passages: dict[str, list[list[Segment]]] = {}
    while len(passages) < PASSAGES:
        before = writer.used.copy()
        sentences = writer.passage(writer.rarest())
        if plain(sentences) in passages:
            writer.used = before
        passages.setdefault(plain(sentences), sentences)
    return [pubtator(number, sentences) for number, sentences in enumerate(passages.values(), FIRST_DOCUMENT)]


def plain(sentences: list[list[Segment]]) -> str:
    """Return the text of a passage."""
    return " ".join("".join(segment[0] for segment in sentence) for sentence in sentences)


def pubtator(number: int, sentences: list[list[Segment]]) -> str:
    """Return one document: the first sentence is its title, the others are its abstract."""
    text, mentions = "", []
    for place, sentence in enumerate(sentences):
        text += " " if place else ""
        for string, entity, identifiers in sentence:
            if entity:
                mentions.append(Mention(len(text), len(text) + len(string), string, entity, identifiers))
            text += string
    title = "".join(segment[0] for segment in sentences[0])
    lines = [f"{number}|t|{title}", f"{number}|a|{text[len(title) + 1 :]}"]
    lines += [f"{number}\t{m.start}\t{m.end}\t{m.text}\t{m.entity}\t{m.identifiers}" for m in mentions]
    return "\n".join(lines) + "\n\n"
