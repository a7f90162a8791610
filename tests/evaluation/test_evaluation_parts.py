"""Parts of the final evaluation that are there are not computed again, unless what they came from is another."""

import pytest

from bali_ds.evaluation.evaluation_parts import EvaluationParts
from bali_ds.files import read_json

EMBEDDING = {"groups": [], "names": [], "maps": {}, "neighbors": []}
SUBSET = {"n": 1, **{measure: {"value": 0.5, "low": 0.0, "high": 1.0} for measure in ("acc@1", "acc@5", "mrr")}}
LINKING = {kind: {"all": SUBSET} for kind in ("untrained", "trained", "difference")}


class Interrupted(Exception):  # noqa: N818
    pass


def interrupted():
    raise Interrupted


def unexpected():
    raise AssertionError("computed again")


def evaluate(run, checkpoint, *, names="n", linking=unexpected, embedding=unexpected):
    parts = EvaluationParts(run, {"checkpoint": checkpoint})
    parts.figures["retrieval"] = {}
    parts.add("linking", {"names": names}, linking)
    parts.add("embedding", {}, embedding)
    parts.finish()
    return read_json(run / "evaluation.json")


def test_a_part_is_kept_over_an_interruption(tmp_path, capsys):
    with pytest.raises(Interrupted):
        evaluate(tmp_path, "a", linking=lambda: LINKING, embedding=interrupted)
    capsys.readouterr()
    found = evaluate(tmp_path, "a", embedding=lambda: EMBEDDING)
    assert (found["linking"], found["embedding"], found["retrieval"]) == (LINKING, EMBEDDING, {})
    assert capsys.readouterr().out == "linking: evaluated before, from the same checkpoint and settings; kept\n"
    assert evaluate(tmp_path, "a") == found


def test_another_checkpoint_or_another_file_is_evaluated_again(tmp_path):
    evaluate(tmp_path, "a", linking=lambda: LINKING, embedding=lambda: EMBEDDING)
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(tmp_path, "b")
    with pytest.raises(AssertionError, match="computed again"):
        evaluate(tmp_path, "a", names="other")
    evaluate(tmp_path, "a", names="other", linking=lambda: LINKING)  # the map is that of before
    with pytest.raises(Interrupted):
        evaluate(tmp_path, "b", linking=interrupted)
    evaluate(tmp_path, "a", names="other")  # nothing was lost


def test_a_part_that_is_no_longer_wanted_and_a_damaged_file_are_left_behind(tmp_path, capsys):
    evaluate(tmp_path, "a", linking=lambda: LINKING, embedding=lambda: EMBEDDING)
    parts = EvaluationParts(tmp_path, {"checkpoint": "a"})
    parts.add("embedding", {}, unexpected)
    parts.finish()
    assert set(read_json(tmp_path / "evaluation.json")) == {"embedding", "made_from"}
    (tmp_path / "evaluation.json").write_text('{"linking": 3}')
    EvaluationParts(tmp_path, {}).add("embedding", {}, lambda: EMBEDDING)
    assert "evaluation.json: key linking: " in capsys.readouterr().out
    assert set(read_json(tmp_path / "evaluation.json")) == {"embedding", "made_from"}
