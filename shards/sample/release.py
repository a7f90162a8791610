"""Writes the graph in the UMLS Rich Release Format: MRCONSO, MRREL, MRSTY and MRDOC."""

from pathlib import Path

from tables import Concept, Fact, rows

SOURCE = "BALISAMPLE"


def write_release(out: Path, concepts: dict[str, Concept], facts: list[Fact]) -> None:
    """Write the four files into `out`; every row ends in a bar, and every fact is stated from both ends."""
    relations = {name: (inverse, rel, inverse_rel) for name, inverse, rel, inverse_rel in rows("relations")}
    write_rows(out / "MRCONSO.RRF", [row for concept in concepts.values() for row in atoms(concept)], number=(7, 3, 5))
    write_rows(out / "MRREL.RRF", relation_rows(facts, relations), number=(8,))
    types = {tui: (tree, name) for tui, tree, name, _ in rows("semantic_types")}
    kinds = [[c.cui, c.semantic_type, *types[c.semantic_type], "AT", ""] for c in concepts.values()]
    write_rows(out / "MRSTY.RRF", kinds, number=(4,))
    pairs = [pair for name, (inverse, *_) in relations.items() for pair in ((name, inverse), (inverse, name))]
    write_rows(out / "MRDOC.RRF", [["RELA", name, "rela_inverse", inverse] for name, inverse in pairs], number=())


def atoms(concept: Concept) -> list[list[str]]:
    """Return the MRCONSO rows of a concept, without their serial numbers."""
    found = []
    for place, name in enumerate(concept.names):
        preferred, term_type = ("P", "PT") if place == 0 else ("S", "SY")
        code = f"S{concept.cui[1:]}"
        row = [concept.cui, "ENG", preferred, "L", "PF", "S", "Y", "A", "", code, "", SOURCE, term_type, code, name]
        found.append([*row, "0", "N", ""])
    return found


def relation_rows(facts: list[Fact], relations: dict[str, tuple[str, str, str]]) -> list[list[str]]:
    """Return the MRREL rows: one reads "CUI2 is RELA of CUI1", so that a fact's tail is CUI1."""
    found = []
    for head, relation, tail in facts:
        inverse, rel, inverse_rel = relations[relation]
        for one, label, two, name in ((tail, rel, head, relation), (head, inverse_rel, tail, inverse)):
            found.append([one, "", "CUI", label, two, "", "CUI", name, "R", "", SOURCE, SOURCE, "", "", "N", ""])
    return found


def write_rows(path: Path, table: list[list[str]], number: tuple[int, ...]) -> None:
    """Write a table; the row number is appended to the letter in the columns `number`."""
    with path.open("w", encoding="utf-8", newline="\n") as lines:
        for place, row in enumerate(table, 1):
            cells = [f"{cell}{place:08d}" if column in number else cell for column, cell in enumerate(row)]
            lines.write("|".join(cells) + "|\n")
