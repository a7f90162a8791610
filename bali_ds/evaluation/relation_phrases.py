"""Relations of the UMLS and of open graphs in other words than their names."""

# By relation: what is asked for where the topic is the head, and where it is the tail.
PHRASES = {
    "isa": ("the broader kinds of thing that {} belongs to", "the particular forms of {}"),
    "mesh_narrower_than": ("the wider headings above {}", "the narrower headings under {}"),
    "part_of": ("the whole that {} is a piece of", "the pieces that make up {}"),
    "anatomic_structure_is_physical_part_of": ("the larger structure around {}", "the structures inside {}"),
    "anatomic_structure_has_location": ("where in the body {} lies", "what lies in {}"),
    "has_phenotype": ("the signs and abnormalities seen in {}", "the disorders in which one sees {}"),
    "disease_has_finding": ("the signs and symptoms of {}", "the disorders in which one sees {}"),
    "disease_may_have_finding": ("what one sometimes observes in {}", "the disorders sometimes accompanied by {}"),
    "disease_excludes_finding": ("what never accompanies {}", "the disorders that {} speaks against"),
    "has_finding_site": ("the part of the body that {} affects", "the disorders located in {}"),
    "disease_has_primary_anatomic_site": ("the organ in which {} begins", "the disorders that begin in {}"),
    "disease_has_associated_anatomic_site": ("the organs touched by {}", "the disorders that touch {}"),
    "disease_has_associated_disease": ("the illnesses that go along with {}", "the illnesses that {} goes along with"),
    "disease_may_have_associated_disease": ("what one may find beside {}", "the illnesses beside which {} turns up"),
    "disease_has_normal_cell_origin": ("the cells from which {} develops", "the disorders that develop from {}"),
    "disease_has_normal_tissue_origin": ("the tissue from which {} develops", "the disorders that grow out of {}"),
    "disease_has_associated_gene": ("the genes linked with {}", "the illnesses linked with the gene {}"),
    "disease_mapped_to_gene": ("the genes located for {}", "the illnesses traced to {}"),
    "gene_involved_in_pathogenesis_of_disease": ("the illnesses that {} helps to bring about", "the genes behind {}"),
    "has_causative_agent": ("what {} is caused by", "the illnesses that {} causes"),
    "due_to": ("the underlying reasons for {}", "the consequences of {}"),
    "induced_by": ("the substances that bring {} about", "what exposure to {} can bring about"),
    "may_treat": ("the conditions against which {} helps", "the medicines used against {}"),
    "may_prevent": ("the conditions that {} keeps away", "the medicines that keep {} away"),
    "contraindicated_with_disease": ("the conditions in which one must not give {}", "the medicines forbidden in {}"),
}  # fmt: skip
PLAIN = ("the things to which {} stands as {relation}", "the things that stand to {} as {relation}")


def paraphrase(relation: str, topic: str, *, backwards: bool) -> str:
    """Return a noun phrase for what a relation leads to.

    Args:
        relation: its name, underscores between words.
        topic: the name or phrase it starts from.
        backwards: whether the topic is the tail.
    """
    words = relation.replace("_", " ").lower()
    return PHRASES.get(relation.lower(), PLAIN)[backwards].format(topic, relation=words)
