"""Picture of the embedding space of concept names: a t-SNE map, and the nearest neighbors of a few names."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bali_ds.graph.knowledge_graph import KnowledgeGraph
from bali_ds.inference.encoder import EncoderLike

CONCEPTS, ON_MAP, EXAMPLES, NEIGHBORS = 4000, 800, 12, 4
# The UMLS semantic groups (McCray, Burgun and Bodenreider, MEDINFO 2001): 15 names for 127 semantic types.
GROUPS = {
    "Activities": "T051 T052 T053 T054 T055 T056 T057 T064 T066",
    "Anatomy": "T017 T018 T021 T022 T023 T024 T025 T026 T029 T030 T031",
    "Chemicals": "T103 T104 T109 T114 T116 T120 T121 T122 T123 T125 T126 T127 T129 T130 T131 T192 T195 T196 T197 T200",
    "Concepts": "T077 T078 T079 T080 T081 T082 T089 T102 T169 T170 T171 T185",
    "Devices": "T074 T075 T203",
    "Disorders": "T019 T020 T033 T037 T046 T047 T048 T049 T050 T184 T190 T191",
    "Genes": "T028 T085 T086 T087 T088",
    "Geography": "T083",
    "Living beings": "T001 T002 T004 T005 T007 T008 T010 T011 T012 T013 T014 T015 T016 T096 T097 T098 T099 T100 T101 "
    "T194 T204",
    "Objects": "T071 T072 T073 T167 T168",
    "Occupations": "T090 T091",
    "Organizations": "T092 T093 T094 T095",
    "Phenomena": "T034 T038 T067 T068 T069 T070",
    "Physiology": "T032 T039 T040 T041 T042 T043 T044 T045 T201",
    "Procedures": "T058 T059 T060 T061 T062 T063 T065",
}
_GROUP_OF_TYPE = {kind: group for group, kinds in GROUPS.items() for kind in kinds.split()}


def describe_embedding(encoders: Mapping[str, EncoderLike], graph: KnowledgeGraph, seed: int = 0) -> dict[str, Any]:
    """Return t-SNE maps and nearest neighbors of a random sample of preferred names, under each encoder.

    Args:
        encoders: encoders by name.
        graph: the graph that concepts are sampled from.
        seed: seed of the sample and of the maps.

    Returns:
        "groups": the semantic group of each concept on the map; "names"; "maps": {encoder: [[x, y], ...]} by t-SNE
        (van der Maaten and Hinton, JMLR 9, 2008) of the vectors, each axis in 0..1; "neighbors":
        [{"name", encoder: [{"name", "cosine"}, ...], ...}, ...].
    """
    generator = np.random.default_rng(seed)
    concepts = generator.permutation(graph.num_concepts)[:CONCEPTS].tolist()
    names = [graph.preferred_name(concept) for concept in concepts]
    vectors = {name: encoder.encode(names) for name, encoder in encoders.items()}
    examples = [
        {"name": names[row], **{model: _nearest(row, names, found) for model, found in vectors.items()}}
        for row in range(min(EXAMPLES, len(names)))
    ]
    return {
        "groups": [semantic_group(graph.semantic_types(concept)) for concept in concepts[:ON_MAP]],
        "names": names[:ON_MAP],
        "maps": {model: _map(found[:ON_MAP], seed) for model, found in vectors.items()},
        "neighbors": examples,
    }


def _nearest(row: int, names: list[str], vectors: NDArray[np.float32]) -> list[dict[str, Any]]:
    cosines = vectors @ vectors[row]
    order = [other for other in np.argsort(-cosines, kind="stable")[: NEIGHBORS + 1].tolist() if other != row]
    return [{"name": names[other], "cosine": round(float(cosines[other]), 3)} for other in order[:NEIGHBORS]]


def _map(vectors: NDArray[np.float32], seed: int) -> list[list[float]]:
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    if len(vectors) < 3:
        return [[0.5, 0.5] for _ in vectors]
    perplexity = min(30.0, (len(vectors) - 1) / 3)
    with threadpool_limits(1):  # with more threads, the short steps of t-SNE take twenty times as long
        places = TSNE(init="pca", metric="cosine", perplexity=perplexity, random_state=seed).fit_transform(vectors)
    low, high = places.min(axis=0), places.max(axis=0)
    scaled: list[list[float]] = np.round((places - low) / np.maximum(high - low, 1e-9), 4).tolist()
    return scaled


def semantic_group(types: tuple[str, ...]) -> str:
    """Return the group of a concept's first known semantic type, otherwise its first type, otherwise "no type"."""
    known = [_GROUP_OF_TYPE[kind] for kind in types if kind in _GROUP_OF_TYPE]
    return known[0] if known else types[0] if types else "no type"
