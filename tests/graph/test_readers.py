"""Readers of ontologies, MeSH and tables with other column names, on small files written here."""

import gzip
import json

import polars as pl
import pytest

from bali_ds.errors import InputError
from bali_ds.graph import obo
from bali_ds.graph.builder import build_graph
from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.graph.mesh import MeshSource
from bali_ds.graph.obo import OboSource
from bali_ds.graph.table_presets import TABLE_PRESETS
from bali_ds.graph.tables import TableSource
from tests.graph.plain_rrf import stored_facts

OBO = """format-version: 1.4
ontology: hp

[Term]
id: HP:0000118
name: Phenotypic abnormality
def: "A \\"phenotypic\\" abnormality." [HPO:probinson]
synonym: "Organ abnormality" EXACT layperson []
synonym: "abnormal" RELATED []
xref: UMLS:C4021819
alt_id: HP:0000999

[Term]
id: HP:0001945
name: Fever
synonym: "Pyrexia" EXACT []
xref: UMLS:C0015967
xref: SNOMEDCT_US:386661006
xref: MSH:D005334
is_a: HP:0000118 {source="x"} ! Phenotypic abnormality
relationship: BFO:0000050 HP:0000118 ! Phenotypic abnormality

[Term]
id: HP:0009999
name: Without a cross-reference
is_a: HP:0000118

[Term]
id: HP:0000003
name: obsolete Heat
is_obsolete: true
replaced_by: HP:0001945

[Typedef]
id: BFO:0000050
name: part of
"""
BASE = "http://purl.obolibrary.org/obo/"


def as_obo_graph() -> str:
    """Return the same ontology as an OBO graph."""

    def xrefs(*values):
        return [{"val": value} for value in values]

    def synonym(kind, text):
        return {"pred": f"has{kind}Synonym", "val": text, "xrefs": []}

    def more(predicate, value):
        return {"basicPropertyValues": [{"pred": predicate, "val": value}]}

    alternative = more("http://www.geneontology.org/formats/oboInOwl#hasAlternativeId", "HP:0000999")
    nodes = {
        "HP_0000118": ("Phenotypic abnormality", "CLASS", {
            "definition": {"val": 'A "phenotypic" abnormality.', "xrefs": ["HPO:probinson"]},
            "synonyms": [synonym("Exact", "Organ abnormality"), synonym("Related", "abnormal")],
            "xrefs": xrefs("UMLS:C4021819"), **alternative,
        }),
        "HP_0001945": ("Fever", "CLASS", {
            "synonyms": [synonym("Exact", "Pyrexia")],
            "xrefs": xrefs("UMLS:C0015967", "SNOMEDCT_US:386661006", "MSH:D005334"),
        }),
        "HP_0009999": ("Without a cross-reference", "CLASS", {}),
        "HP_0000003": ("obsolete Heat", "CLASS", {
            "deprecated": True, **more(f"{BASE}IAO_0100001", f"{BASE}HP_0001945"),
        }),
        "BFO_0000050": ("part of", "PROPERTY", {}),
    }  # fmt: skip
    edges = [("HP_0001945", "is_a", "HP_0000118"), ("HP_0001945", f"{BASE}BFO_0000050", "HP_0000118"),
             ("HP_0009999", "is_a", "HP_0000118")]  # fmt: skip
    graph = {
        "id": f"{BASE}hp.json",
        "nodes": [
            {"id": BASE + name, "lbl": label, "type": kind, "meta": meta} for name, (label, kind, meta) in nodes.items()
        ],
        "edges": [{"sub": BASE + one, "pred": kind, "obj": BASE + other} for one, kind, other in edges],
    }  # fmt: skip
    return json.dumps({"graphs": [graph]})


def built(folder, *sources) -> KnowledgeGraph:
    build_graph(sources, folder / "graph")
    return KnowledgeGraph.open(folder / "graph", verify=True)


@pytest.fixture(params=["hp.obo", "hp.obo.gz", "hp.json", "hp.json.gz"])
def ontology(request, tmp_path):
    text = (as_obo_graph() if "json" in request.param else OBO).encode()
    path = tmp_path / request.param
    path.write_bytes(gzip.compress(text) if request.param.endswith("gz") else text)
    return path


def test_ontology_by_cross_reference(ontology, tmp_path):
    source = OboSource(ontology, "UMLS")
    graph = built(tmp_path, source)
    assert [graph.cui(concept) for concept in range(3)] == ["C0015967", "C4021819", "HP:0009999"]
    assert graph.names(0) == ["Fever", "Pyrexia"]
    assert graph.names(1) == ["Phenotypic abnormality", "Organ abnormality"]
    assert graph.definitions(1) == ['A "phenotypic" abnormality.']
    assert {fact for fact in stored_facts(graph) if fact[1] in ("isa", "part_of")} == {
        ("C0015967", "isa", "C4021819", "HPO"), ("HP:0009999", "isa", "C4021819", "HPO"),
        ("C0015967", "part_of", "C4021819", "HPO"),
    }  # fmt: skip
    assert graph.lookup(["HP:0000999", "HP:0000003", "HP:0001945"]).tolist() == [1, 0, -1]
    for code in ("HP:0001945", "SCTID:386661006", "MESH:D005334", "UMLS:C0015967"):
        assert graph.code_to_cuis("", code) == ["C0015967"]
    counts = source.report[ontology.name]
    assert (counts["rows"], counts["dropped: obsolete"], counts["without a cross-reference to UMLS"]) == (4, 1, 1)
    assert counts["dropped: synonym that is not exact"] == 1


def test_ontologies_meet_whatever_they_call_the_umls(tmp_path):
    """MONDO writes UMLS, DOID UMLS_CUI; DOID's prefix of SNOMED CT has a date."""
    for name, term, prefix in (("mondo", "MONDO:1", "UMLS"), ("doid", "DOID:2", "UMLS_CUI")):
        text = f"format-version: 1.4\n\n[Term]\nid: {term}\nname: {name} fever\nxref: {prefix}:C0015967\n"
        (tmp_path / f"{name}.obo").write_text(f"{text}xref: SNOMEDCT_US_2023_03_01:386661006\n")
    graph = built(tmp_path, *(OboSource(tmp_path / f"{name}.obo", "UMLS") for name in ("mondo", "doid")))
    assert (graph.num_concepts, graph.cui(0), sorted(graph.names(0))) == (1, "C0015967", ["doid fever", "mondo fever"])
    for code in ("SNOMEDCT_US:386661006", "UMLS_CUI:C0015967", "UMLS:C0015967", "DOID:2"):
        assert graph.code_to_cuis("", code) == ["C0015967"]


@pytest.mark.parametrize("name", ["bomb.obo.gz", "bomb.json.gz"])
def test_an_ontology_without_end_is_refused(tmp_path, monkeypatch, name):
    monkeypatch.setattr(obo, "LARGEST_ONTOLOGY", 1 << 20)
    (tmp_path / name).write_bytes(gzip.compress(b"format-version: 1.4\n" + b"\n" * (1 << 22)))
    with pytest.raises(InputError, match="has more than 1 MiB in one ontology"):
        OboSource(tmp_path / name)


def test_ontology_by_its_own_ids(ontology, tmp_path):
    graph = built(tmp_path, OboSource(ontology))
    assert [graph.cui(concept) for concept in range(3)] == ["HP:0000118", "HP:0001945", "HP:0009999"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.obo", b"format-version: 1.4\n\n[Term]\nid: HP:1\nnam: x\n", "line 5: expected"),
        ("b.obo", b"format-version: 1.4\n\n[Term]\nid: HP:1\nname: \xe4\n", "UTF-8"),
        ("c.json", b"{nope", "cannot be read"),
        ("d.obo.gz", gzip.compress(OBO.encode())[:-20], "cannot be read"),
    ],
)
def test_bad_ontologies_are_refused(tmp_path, name, text, message):
    (tmp_path / name).write_bytes(text)
    with pytest.raises(InputError, match=message) as caught:
        OboSource(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


MESH = """<?xml version="1.0"?>
<!DOCTYPE DescriptorRecordSet SYSTEM "https://www.nlm.nih.gov/databases/dtd/nlmdescriptorrecordset_20260101.dtd">
<DescriptorRecordSet LanguageCode="eng">
<DescriptorRecord DescriptorClass="1"><DescriptorUI>D000001</DescriptorUI>
 <DescriptorName><String>Calcimycin</String></DescriptorName>
 <PharmacologicalActionList><PharmacologicalAction><DescriptorReferredTo><DescriptorUI>D000003</DescriptorUI>
 <DescriptorName><String>Action</String></DescriptorName></DescriptorReferredTo></PharmacologicalAction>
 </PharmacologicalActionList>
 <TreeNumberList><TreeNumber>D03.633.100</TreeNumber></TreeNumberList>
 <ConceptList><Concept PreferredConceptYN="Y"><ConceptUI>M0000001</ConceptUI>
 <ConceptName><String>Calcimycin</String></ConceptName><ScopeNote>An ionophore &amp; more.
 </ScopeNote><TermList><Term><TermUI>T1</TermUI><String>Calcimycin</String></Term>
 <Term><TermUI>T2</TermUI><String>A-23187</String></Term></TermList></Concept></ConceptList></DescriptorRecord>
<DescriptorRecord DescriptorClass="1"><DescriptorUI>D000002</DescriptorUI>
 <DescriptorName><String>Benzoxazoles</String></DescriptorName>
 <TreeNumberList><TreeNumber>D03.633</TreeNumber></TreeNumberList></DescriptorRecord>
<DescriptorRecord DescriptorClass="1"><DescriptorUI>D000003</DescriptorUI>
 <DescriptorName><String>Ionophores</String></DescriptorName></DescriptorRecord>
</DescriptorRecordSet>
"""


@pytest.mark.parametrize("name", ["desc.xml", "desc.gz"])
def test_mesh_descriptors(tmp_path, name):
    (tmp_path / name).write_bytes(gzip.compress(MESH.encode()) if name.endswith("gz") else MESH.encode())
    graph = built(tmp_path, MeshSource(tmp_path / name))
    assert graph.names(0) == ["Calcimycin", "A-23187"]
    assert graph.definitions(0) == ["An ionophore & more."]
    assert graph.code_to_cuis("MESH", "D000001") == ["MESH:D000001"]
    assert set(stored_facts(graph)) == {
        ("MESH:D000001", "child_of", "MESH:D000002", "MSH"), ("MESH:D000002", "parent_of", "MESH:D000001", "MSH"),
        ("MESH:D000001", "has_pharmacological_action", "MESH:D000003", "MSH"),
        ("MESH:D000003", "pharmacological_action_of", "MESH:D000001", "MSH"),
    }  # fmt: skip


def test_mesh_names_are_read_past_named_characters(tmp_path):
    """The DTD, which is never loaded, defines them; a reader that ignores them ends the name there."""
    named = MESH.replace("Benzoxazoles", "TNF-&alpha; and &lt;<!-- not this -->3")
    (tmp_path / "desc.xml").write_text(named)
    graph = built(tmp_path, MeshSource(tmp_path / "desc.xml"))
    assert graph.names(1) == ["TNF-α and <3"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (MESH[: len(MESH) // 2], r"desc\.xml:1[0-9]: is not well-formed XML"),
        ("<a/>", "no DescriptorRecord"),
        ('<!DOCTYPE x [<!ENTITY e "eeee">]><DescriptorRecordSet><DescriptorRecord><DescriptorUI>&e;</DescriptorUI>'
         "</DescriptorRecord></DescriptorRecordSet>", "defines XML entities"),
    ],
)  # fmt: skip
def test_bad_mesh_is_refused(tmp_path, text, message):
    (tmp_path / "desc.xml").write_text(text)
    with pytest.raises(InputError, match=message):
        built(tmp_path, MeshSource(tmp_path / "desc.xml"))


PRIMEKG = pl.DataFrame(
    {
        "relation": ["protein_protein", "drug_effect"],
        "x_index": [7, 9], "x_name": ["PHYHIP, the first", 'so-called "drug"'], "x_type": ["gene/protein", "drug"],
        "y_index": [8, 10], "y_name": ["KIF15", "fever"], "y_type": ["gene/protein", "effect/phenotype"],
    }
)  # fmt: skip
PRIMEKG_COLUMNS = {
    "head_cui": "x_index", "tail_cui": "y_index", "head_name": "x_name", "tail_name": "y_name",
    "head_types": "x_type", "tail_types": "y_type",
}  # fmt: skip


@pytest.mark.parametrize("name", ["kg.csv", "kg.csv.gz", "kg.parquet"])
def test_edges_that_name_their_nodes(tmp_path, name):
    path = tmp_path / name
    if name.endswith("parquet"):
        PRIMEKG.write_parquet(path)
    else:
        text = PRIMEKG.write_csv().encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    graph = built(tmp_path, TableSource(None, path, PRIMEKG_COLUMNS))
    assert [graph.cui(concept) for concept in range(4)] == ["10", "7", "8", "9"]
    assert [graph.preferred_name(concept) for concept in range(4)] == [
        "fever",
        "PHYHIP, the first",
        "KIF15",
        'so-called "drug"',
    ]
    assert graph.semantic_types(1) == ("gene/protein",)
    assert ("9", "drug_effect", "10", "KG") in stored_facts(graph)
    assert graph.num_edges == 2


def test_primekg_keeps_identifiers_of_vocabularies_apart(tmp_path):
    """Gene 9796 and drug 9796 are two concepts, and an edge that is listed in both directions is one fact."""
    header = "relation,display_relation,x_index,x_id,x_type,x_name,x_source,y_index,y_id,y_type,y_name,y_source\n"
    gene, other = "9796,gene/protein,PHYHIP,NCBI", "56992,gene/protein,KIF15,NCBI"
    drug, disease = "9796,drug,Copper,DrugBank", "5044,disease,hypertension,MONDO"
    rows = [("protein_protein", "ppi", gene, other), ("indication", "indication", drug, disease),
            ("drug_protein", "target", drug, gene)]  # fmt: skip
    both = [each for name, shown, x, y in rows for each in ((name, shown, x, y), (name, shown, y, x))]
    path = tmp_path / "kg.csv"
    path.write_text(header + "".join(f"{name},{shown},1,{x},2,{y}\n" for name, shown, x, y in both))
    graph = built(tmp_path, TableSource(None, path, preset=TABLE_PRESETS["primekg"]))
    cuis = ["DrugBank:9796", "MONDO:5044", "NCBIGENE:56992", "NCBIGENE:9796"]
    assert [graph.cui(concept) for concept in range(graph.num_concepts)] == cuis
    assert graph.num_edges == 3
    assert ("DrugBank:9796", "indication", "MONDO:5044", "KG") in stored_facts(graph)
    assert graph.code_to_cuis("NCBIGENE", "9796") == ["NCBIGENE:9796"]
    source = TableSource(
        None, path, {"head_cui": "x_id", "tail_cui": "y_id", "head_name": "x_name", "tail_name": "y_name"}
    )
    report = build_graph([source], tmp_path / "merged")
    (warning,) = report["warnings"]
    assert "kg.csv: 1 identifiers have several preferred names (9796: Copper, PHYHIP)" in warning


def test_hetionet(tmp_path):
    """Its column `source` is the head of an edge, not the source of the fact."""
    (tmp_path / "nodes.tsv").write_text(
        "id\tname\tkind\nGene::9021\tSOCS3\tGene\nBiological Process::GO:0071357\tresponse\tBiological Process\n"
        "Side Effect::C0015967\tFever\tSide Effect\nSymptom::D005334\tFever\tSymptom\n"
    )
    (tmp_path / "edges.sif").write_text(
        "source\tmetaedge\ttarget\nGene::9021\tGpBP\tBiological Process::GO:0071357\n"
        "Gene::9021\tCcSE\tSide Effect::C0015967\n"
    )
    tables = tmp_path / "nodes.tsv", tmp_path / "edges.sif"
    graph = built(tmp_path, TableSource(*tables, preset=TABLE_PRESETS["hetionet"]))
    cuis = ["C0015967", "GO:0071357", "MESH:D005334", "NCBIGENE:9021"]
    assert [graph.cui(concept) for concept in range(graph.num_concepts)] == cuis
    assert {fact for fact in stored_facts(graph) if fact[0] == "NCBIGENE:9021"} == {
        ("NCBIGENE:9021", "participates_in", "GO:0071357", "EDGES"), ("NCBIGENE:9021", "causes", "C0015967", "EDGES"),
    }  # fmt: skip
    columns = {
        "cui": "id",
        "preferred_name": "name",
        "head_cui": "source",
        "relation": "metaedge",
        "tail_cui": "target",
    }
    build_graph([TableSource(*tables, columns)], tmp_path / "plain")
    assert KnowledgeGraph.open(tmp_path / "plain").sources == ("EDGES",)


def test_a_column_prefix_is_used_only_if_it_is_mapped(tmp_path):
    (tmp_path / "nodes.tsv").write_text("cui\tpreferred_name\tprefix\nC1\tone\tDr\nC2\ttwo\tMr\n")
    (tmp_path / "edges.tsv").write_text("head_cui\trelation\ttail_cui\nC1\tr\tC2\n")
    graph = built(tmp_path, TableSource(tmp_path / "nodes.tsv", tmp_path / "edges.tsv"))
    assert [graph.cui(concept) for concept in range(2)] == ["C1", "C2"]


def test_biokg(tmp_path):
    """Its tables have no line that names the columns, and its names are one property among others."""
    (tmp_path / "names.txt").write_text(
        "P04637\tNAME\tP53_HUMAN\nP04637\tSPECIES\tHUMAN\nDB00945\tNAME\tAspirin\nD003920\tNAME\tDiabetes Mellitus\n"
    )
    (tmp_path / "links.tsv").write_text(
        "DB00945\tDRUG_TARGET\tP04637\nDB00945\tDRUG_DISEASE_ASSOCIATION\tD003920\nDB00945\tDPI\tP04637\n"
    )
    source = TableSource(tmp_path / "names.txt", tmp_path / "links.tsv", preset=TABLE_PRESETS["biokg"])
    graph = built(tmp_path, source)
    assert [graph.names(concept) for concept in range(3)] == [["Diabetes Mellitus"], ["Aspirin"], ["P53_HUMAN"]]
    assert {fact for fact in stored_facts(graph) if fact[0] == "DB00945"} == {
        ("DB00945", "has_target", "P04637", "LINKS"), ("DB00945", "interacts_with", "P04637", "LINKS"),
        ("DB00945", "associated_with", "D003920", "LINKS"),
    }  # fmt: skip
    assert source.report["names.txt"] == {"rows": 4, "dropped: other property": 1}


def test_column_errors_are_named(tmp_path):
    path = tmp_path / "kg.csv"
    PRIMEKG.write_csv(path)
    with pytest.raises(InputError, match=r"kg\.csv: line 1: has no column head_cui; it has relation, x_index"):
        TableSource(None, path)
    with pytest.raises(InputError, match="has no column z"):
        TableSource(None, path, {**PRIMEKG_COLUMNS, "source": "z"})
    with pytest.raises(InputError, match="column haed: is not a column"):
        TableSource(None, path, {"haed": "x_index"})
    path.write_text(path.read_text() + "one,two\n")
    with pytest.raises(InputError, match=r"kg\.csv: "):
        built(tmp_path, TableSource(None, path, PRIMEKG_COLUMNS))
    (tmp_path / "kg.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(InputError, match="is not a readable Parquet file"):
        TableSource(None, tmp_path / "kg.parquet", PRIMEKG_COLUMNS)


def test_sources_merge_on_the_identifier(ontology, small_tables, tmp_path):
    nodes, edges = small_tables
    nodes.write_text(nodes.read_text() + "C0015967\tfever\tfebrile\tT184\tDISO\tMESH:D005334\n")
    edges.write_text(edges.read_text() + "C2\thas_phenotype\tC0015967\tHPOA\n")
    graph = built(tmp_path, OboSource(ontology, "UMLS"), TableSource(nodes, edges))
    other = tmp_path / "other"
    build_graph([TableSource(nodes, edges), OboSource(ontology, "UMLS")], other)
    assert graph.fingerprint == KnowledgeGraph.open(other).fingerprint
    fever = int(graph.lookup(["C0015967"])[0])
    assert graph.names(fever) == ["Fever", "fever", "Pyrexia", "febrile"]
    relations = {fact[1:3] for fact in stored_facts(graph) if fact[0] == "C0015967"}
    assert relations == {("isa", "C4021819"), ("part_of", "C4021819"), ("phenotype_of", "C2")}


def test_spoke(tmp_path):
    """Neo4j's export has nodes and edges in one file, whose edges refer to nodes by the numbers of the database."""
    (tmp_path / "spoke.csv").write_text(
        '"_id","_labels","identifier","name","source","synonyms","_start","_end","_type","source"\n'
        '"0",":Gene","672","BRCA1","Entrez Gene","[""IRIS"",""RNF53""]","","","",""\n'
        '"7",":Disease","DOID:1612","breast cancer","Disease Ontology","","","","",""\n'
        '"8",":SideEffect","C0015967","Fever","SIDER","[]","","","",""\n'
        '"9",":Compound","inchikey:BSYNRYMUTXBXSQ-UHFFFAOYSA-N","Aspirin","ChEMBL","","","","",""\n'
        '"10",":Version","","","","","","","",""\n'
        '"","","","","","","7","0","ASSOCIATES_DaG","OMIM"\n'
        '"","","","","","","9","8","CAUSES_CcSE","SIDER"\n'
        '"","","","","","","9","7","IN_CLINICAL_TRIALS_FOR_CictD",""\n'
        '"","","","","","","10","7","TREATS_CtD",""\n'
    )
    source = TableSource(None, tmp_path / "spoke.csv", preset=TABLE_PRESETS["spoke"])
    graph = built(tmp_path, source)
    aspirin = "inchikey:BSYNRYMUTXBXSQ-UHFFFAOYSA-N"
    cuis = ["C0015967", "DOID:1612", "NCBIGENE:672", aspirin]
    assert [graph.cui(concept) for concept in range(graph.num_concepts)] == cuis
    assert graph.names(2) == ["BRCA1", "IRIS", "RNF53"]
    assert graph.semantic_types(2) == ("Gene",)
    assert {fact for fact in stored_facts(graph) if not fact[1].startswith("inverse")} >= {
        ("DOID:1612", "associated_with", "NCBIGENE:672", "SPOKE"), (aspirin, "causes", "C0015967", "SPOKE"),
        (aspirin, "in_clinical_trials_for", "DOID:1612", "SPOKE"),
    }  # fmt: skip
    assert source.report["spoke.csv"] == {"rows": 9, "dropped: no identifier": 1}
