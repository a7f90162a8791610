"""Every task from a small file in its official format to its score."""

import json

import pytest

from bali_ds.cli import main
from bali_ds.errors import InputError
from bali_ds.evaluation.question_data import Question, read_questions, read_splits

PUBMEDQA = {
    str(number): {
        "QUESTION": f"name {number}?" * (20 if number == 3 else 1),
        "CONTEXTS": ["pair 1", "plus"],
        "final_decision": ("yes", "no")[number % 2],
    }
    for number in range(24)
}
BIOASQ = {
    "questions": [
        {"body": "Is it?", "type": "yesno", "exact_answer": "Yes", "snippets": [{"text": "It is."}]},
        {"body": "What?", "type": "factoid", "exact_answer": [["x"]], "snippets": []},
        {"body": "Or not?", "type": "yesno", "exact_answer": ["no"]},
    ]
}
MEDQA = {"question": "Which?", "options": {"A": "name 1", "B": "pair", "C": "plus", "D": "name 2"}, "answer_idx": "C"}
MEDMCQA = {"question": "Which?", "opa": "a", "opb": "b", "opc": "c", "opd": "d", "cop": 2, "exp": None}


def test_official_formats(tmp_path):
    files = {
        "pubmedqa": json.dumps(PUBMEDQA),
        "bioasq": json.dumps(BIOASQ),
        "medqa": json.dumps(MEDQA) + "\n",
        "medmcqa": json.dumps(MEDMCQA) + "\n",
        "blurb": json.dumps({"id": "1", "sentence": "a <e1> b", "label": "CPR:3"}) + "\n",
    }
    for task, content in files.items():
        (tmp_path / task).write_text(content)
    read = {task: read_questions(task, tmp_path / task) for task in files}
    assert read["pubmedqa"][1] == Question("name 1?", "pair 1 plus", (), "no")
    assert read["bioasq"] == [Question("Is it?", "It is.", (), "yes"), Question("Or not?", "", (), "no")]
    assert read_questions("bioasq", tmp_path / "bioasq", snippets=False)[0].context == ""
    assert read["medqa"] == [Question("Which?", "", ("name 1", "pair", "plus", "name 2"), "2")]
    assert read["medmcqa"] == [Question("Which?", "", ("a", "b", "c", "d"), "1")]
    assert read["blurb"] == [Question("a <e1> b", "", (), "CPR:3")]


def test_cross_validation_tests_each_question_once(tmp_path):
    (tmp_path / "all.json").write_text(json.dumps(PUBMEDQA))
    splits = read_splits("pubmedqa", tmp_path / "all.json", folds=4)
    tested = [question for split in splits for question in split.test]
    assert sorted(q.text + q.answer for q in tested) == sorted(
        q.text + q.answer for q in read_questions("pubmedqa", tmp_path / "all.json")
    )
    for split in splits:
        assert len(split.train) + len(split.development) + len(split.test) == 24
        assert sum(question.answer == "yes" for question in split.test) == 3


def test_official_folds(tmp_path):
    for fold in range(2):
        (tmp_path / f"pqal_fold{fold}").mkdir()
        for part in ("train", "dev"):
            (tmp_path / f"pqal_fold{fold}" / f"{part}_set.json").write_text(json.dumps(PUBMEDQA))
    (tmp_path / "test_set.json").write_text(json.dumps({"1": PUBMEDQA["1"]}))
    splits = read_splits("pubmedqa", tmp_path, folds=10)
    assert [len(split.test) for split in splits] == [1, 1]


@pytest.mark.parametrize("content", ["{}", '{"1": {"QUESTION": "x"}}', "[", '{"1": 5}'])
def test_bad_files_are_one_line(tmp_path, content):
    (tmp_path / "bad.json").write_text(content)
    with pytest.raises(InputError) as caught:
        read_questions("pubmedqa", tmp_path / "bad.json")
    assert "bad.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_fine_tunes_and_scores(tmp_path, tiny_encoder, capsys):
    contexts = {key: {**entry, "CONTEXTS": entry["CONTEXTS"] * 200} for key, entry in PUBMEDQA.items()}
    (tmp_path / "all.json").write_text(json.dumps(contexts))  # longer than the encoder reads
    arguments = [
        "evaluate",
        "qa",
        "--model",
        str(tiny_encoder),
        "--task",
        "pubmedqa",
        "--data",
        str(tmp_path / "all.json"),
    ]
    assert main([*arguments, "--folds", "3", "--epochs", "1", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["rounds"] == 3
    assert result["n"] == 24
    assert result["majority"] == 0.5
    assert len(result["accuracy"]["each"]) == 3


def test_multiple_choice_trains(tmp_path, tiny_encoder, capsys):
    for part in ("train", "dev", "test"):
        (tmp_path / f"{part}.jsonl").write_text((json.dumps(MEDQA) + "\n") * 4)
    arguments = ["evaluate", "qa", "--model", str(tiny_encoder), "--task", "medqa", "--data", str(tmp_path)]
    assert main([*arguments, "--epochs", "2", "--learning-rate", "0.01", "--max-tokens", "24"]) == 0
    assert "accuracy 100.0 ± 0.0 over 1 rounds, 4 questions" in capsys.readouterr().out
