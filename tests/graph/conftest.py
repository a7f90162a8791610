from pathlib import Path

import pytest

from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.tables import TableSource

NODES = """cui\tpreferred_name\tsynonyms\tsemantic_types\tgroup\tsource_terms
C1\tfever\tpyrexia|raised temperature\tT184\tDISO\tMESH:D005334;HP:0001945
C2\tinfluenza\tflu\tT047\tDISO\tMESH:D007251
C3\tdisease\t\t\tDISO\t
C4\taspirin\tacetylsalicylic acid\tT109;T121\tCHEM\tMESH:D001241
C5\tlonely\t\t\tDISO\t
"""
EDGES = """head_cui\trelation\ttail_cui\tsource
C2\thas_phenotype\tC1\tHPOA
C2\tisa\tC3\tMONDO
C2\tisa\tC3\tDOID
C2\tisa\tC3\tDOID
C1\tisa\tC3\tMONDO
C4\tmay_treat\tC1\tMED-RT
C4\tisa\tC4\tMESH
C4\tisa\tC9\tMESH
"""


@pytest.fixture
def small_tables(tmp_path: Path) -> tuple[Path, Path]:
    nodes, edges = tmp_path / "nodes.tsv", tmp_path / "edges.tsv"
    nodes.write_text(NODES)
    edges.write_text(EDGES)
    return nodes, edges


@pytest.fixture
def small_graph(small_tables: tuple[Path, Path], tmp_path: Path) -> KnowledgeGraph:
    build_graph([TableSource(*small_tables)], tmp_path / "graph")
    return KnowledgeGraph.open(tmp_path / "graph")
