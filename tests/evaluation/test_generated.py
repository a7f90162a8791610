"""Token sequences of the decoder as text."""

from bali_ds.corpus.tokenizer import Tokenizer
from bali_ds.evaluation.generated_text import fact_texts, generated_table, passage_text


def test_sequences_end_where_their_language_says(tokenizer_directory):
    tokenizer = Tokenizer.load(tokenizer_directory)
    cls, sep, pad = tokenizer.cls_id, tokenizer.sep_id, tokenizer.pad_id
    renal, heart = tokenizer.encode_ids(["renal failure", "heart disease"])
    assert passage_text([cls, *renal, sep, *heart], tokenizer) == "renal failure"
    assert passage_text([cls, *renal], tokenizer) == "renal failure"
    assert passage_text([cls], tokenizer) == ""
    assert fact_texts([cls, *renal, sep, *heart, sep, sep, *renal], tokenizer) == ["renal failure", "heart disease"]
    assert fact_texts([cls, *renal, sep, *heart], tokenizer) == ["renal failure", "heart disease"]
    assert fact_texts([cls, sep, pad, pad], tokenizer) == []


def test_the_table_is_text_and_nothing_else():
    sides = {"true": "a < b", "written": "<b>"}
    facts = {"true": ["x isa y", "p < q"], "written": []}
    table = generated_table([{"sample": "doc_000", "passage": sides, "facts": facts}])
    assert "a &lt; b" in table
    assert "<b>" not in table
    assert '<td>x isa y<br>p &lt; q</td><td><span class="quiet">nothing</span></td>' in table
