"""The content of a batch, one sample, one concept, one token at a time: slow, plain, and free of the stream's code.

Only the keyed randomness is shared, since which key decides what is part of the agreement.
"""

from bali_ds.randomness import below, choose, derive, uniform
from tests.packs import rows_of


def chance(key):
    return float(uniform(key)[0])


def expected_sample(shards, graph, settings, row, epoch):
    """What one sample contributes to a batch, as plain lists."""
    tokens, mentions, edges = shards.arrays(row)
    tokenizer = shards.index["tokenizer"]
    visit = derive(settings.seed, epoch, row)
    tokens, mentions = tokens.tolist(), mentions.tolist()
    if settings.markers:
        tokens, mentions = expected_marks(tokens, mentions, settings.markers)
        tokenizer = tokenizer | {"special_ids": [*tokenizer["special_ids"], *settings.markers]}
    begin = len(settings.prompt)
    tokens[1:1] = settings.prompt
    mentions = [(start + begin, end + begin, concept) for start, end, concept in mentions]
    spans = {}
    for start, end, concept in mentions:
        spans.setdefault(concept, set()).update(range(start, end))
    inputs, labels = expected_tokens(tokens, set().union(*spans.values()), tokenizer, settings, visit, begin)
    views = [
        expected_view(shards, graph, settings, derive(visit, concept), concept, sorted(places), edges.tolist())
        for concept, places in spans.items()
    ]
    return {"row": row, "inputs": inputs, "labels": labels, "views": views}


def expected_marks(tokens, mentions, markers):
    """Insert markers one mention at a time; of mentions that overlap, the first and then the longest has them."""
    free, marked = 0, []
    for start, end, _ in sorted(mentions, key=lambda mention: (mention[0], -mention[1])):
        if start >= free:
            marked.append((start, end))
        free = max(free, end)
    pieces = [[token] for token in tokens]
    for start, end in marked:
        pieces[start].insert(0, markers[0])
        pieces[end - 1].append(markers[1])
    places = [
        sum(map(len, pieces[:place])) + piece.index(tokens[place], piece[0] == markers[0])
        for place, piece in enumerate(pieces)
    ]
    moved = [(places[start], places[end - 1] + 1, concept) for start, end, concept in mentions]
    return [token for piece in pieces for token in piece], moved


def expected_tokens(tokens, mentioned, tokenizer, settings, visit, prompt):
    hide = chance(derive(visit, "mentions")) < settings.mention_masking
    ordinary = [token for token in range(tokenizer["vocab_size"]) if token not in tokenizer["special_ids"]]
    inputs, labels = list(tokens), {}
    for place, token in enumerate(tokens):
        key = derive(visit, place)
        if hide and place in mentioned:
            inputs[place] = tokenizer["mask_id"]
        elif place > prompt and token not in tokenizer["special_ids"] and chance(key) < settings.token_masking:
            labels[place] = token
            fate = chance(derive(key, "fate"))
            if fate < 0.8:
                inputs[place] = tokenizer["mask_id"]
            elif fate >= 0.9:
                inputs[place] = ordinary[int(below(derive(key, "token"), len(ordinary))[0])]
    return inputs, labels


def expected_view(shards, graph, settings, key, concept, places, edges):
    own = [(relation, neighbor) for head, relation, neighbor in edges if head == concept]
    chosen = choose(derive(key, "neighbours"), len(own), settings.fan_out)[0].tolist()
    drawn = [own[place] for place in chosen if place >= 0]
    hide = len(own) >= 2 and chance(derive(key, "name")) < settings.name_masking
    nodes = [concept, *(neighbor for _, neighbor in drawn)]
    names = [name_tokens(shards, graph, derive(key, "synonym", slot), node) for slot, node in enumerate(nodes)]
    mask = shards.index["tokenizer"]["mask_id"]
    if hide:
        names[0] = [mask] * len(names[0])
    return {
        "concept": concept,
        "places": places,
        "names": [name or [mask] for name in names],
        "to_concept": [relation for relation, _ in drawn],
        "from_concept": [
            relation - graph.num_relations if relation >= graph.num_relations else relation + graph.num_relations
            for relation, _ in drawn
        ],
    }


def name_tokens(shards, graph, key, concept):
    first, end = (int(offset) for offset in graph.name_offsets[concept : concept + 2])
    if first == end:
        return []
    name = first + int(below(key, end - first)[0])
    tokens, offsets = shards.names
    return tokens[int(offsets[name]) : int(offsets[name + 1])].tolist() or [shards.index["tokenizer"]["mask_id"]]


def found_samples(batch):
    """The same lists, read back from a batch."""
    names = [row[1:-1] for row in rows_of(batch.names)]
    begins = batch.passages.offsets[:-1].tolist()
    passages = [{"inputs": row, "begin": begin} for row, begin in zip(rows_of(batch.passages), begins, strict=True)]
    for passage in passages:
        inside = range(passage["begin"], passage["begin"] + len(passage["inputs"]))
        passage["labels"] = {
            position - inside.start: label
            for position, label in zip(batch.labeled_tokens.tolist(), batch.labels.tolist(), strict=True)
            if position in inside
        }
    return passages, [found_view(batch, names, view) for view in range(batch.num_views)]


def found_view(batch, names, view):
    target = int(batch.targets[view])
    messages = list(zip(*batch.edge_index.tolist(), batch.edge_relations.tolist(), strict=True))
    incoming = [(source, relation) for source, goal, relation in messages if goal == target]
    outgoing = [(goal, relation) for source, goal, relation in messages if source == target]
    nodes = [target, *(node for node, _ in incoming)]
    assert [node for node, _ in outgoing] == nodes[1:] == list(range(target + 1, target + len(nodes)))
    return {
        "concept": int(batch.concept_ids[view]),
        "flat": batch.mention_tokens[batch.mention_views == view].tolist(),
        "names": [names[int(batch.node_names[node])] for node in nodes],
        "to_concept": [relation for _, relation in incoming],
        "from_concept": [relation for _, relation in outgoing],
    }
