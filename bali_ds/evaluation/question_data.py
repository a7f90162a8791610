"""Readers of question answering and classification data sets in their official formats.

| task | file | from |
| --- | --- | --- |
| pubmedqa | `ori_pqal.json`, or the folder of official folds (`pqal_fold0/train_set.json`, ..., `test_set.json`) | github.com/pubmedqa/pubmedqa |
| bioasq | training or golden JSON of task B; yes/no questions | participants-area.bioasq.org |
| medqa | `phrases_no_exclude_{train,dev,test}.jsonl` | github.com/jind11/MedQA |
| medmcqa | `{train,dev}.json`, one object a line | github.com/medmcqa/medmcqa |
| blurb | JSON lines with `sentence` and `label`, as LinkBERT's preprocessing writes the BLURB tasks | github.com/michiyasunaga/LinkBERT |
"""  # noqa: E501

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bali_ds.errors import InputError
from bali_ds.files import nonempty_lines, read_json


@dataclass(frozen=True)
class Question:
    """One question with its answer.

    Attributes:
        text: the question or sentence.
        context: text given with the question; may be empty.
        options: answer options of a multiple-choice question, otherwise empty.
        answer: the correct label, or the index of the correct option as a string.
    """

    text: str
    context: str
    options: tuple[str, ...]
    answer: str


def read_questions(task: str, path: Path, *, snippets: bool = True) -> list[Question]:
    """Read one file of a task.

    Args:
        task: one of `READERS`.
        path: file to read.
        snippets: whether the snippets of BioASQ questions are read as context.

    Raises:
        InputError: the file cannot be read, or a question lacks a field of the task's format.
    """
    if task not in READERS:
        raise InputError(f"task {task!r} is unknown; use one of {', '.join(READERS)}")
    questions = []
    try:
        for place, item in enumerate(READERS[task](path), 1):  # noqa: B007
            if question := _PARSERS[task](item, snippets):
                questions.append(question)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise InputError(
            f"{path}: item {place} is not in the {task} format: {error} is missing or malformed"
        ) from error
    if not questions:
        raise InputError(f"{path}: holds no {task} questions; check the file and --task")
    return questions


def _values(path: Path) -> Iterator[Any]:
    yield from read_json(path).values()


def _bioasq_questions(path: Path) -> Iterator[Any]:
    yield from read_json(path)["questions"]


def _lines(path: Path) -> Iterator[Any]:
    for number, line in nonempty_lines(path):
        try:
            yield json.loads(line)
        except ValueError as error:
            raise InputError(f"{path}:{number}: is not valid JSON") from error


def _pubmedqa(item: Any, snippets: bool) -> Question:  # noqa: ARG001
    return Question(item["QUESTION"], " ".join(item["CONTEXTS"]), (), item["final_decision"])


def _bioasq(item: Any, snippets: bool) -> Question | None:
    if item["type"] != "yesno":
        return None
    answer = item["exact_answer"]
    context = " ".join(snippet["text"] for snippet in item.get("snippets", ())) if snippets else ""
    return Question(item["body"], context, (), (answer[0] if isinstance(answer, list) else answer).strip().lower())


def _medqa(item: Any, snippets: bool) -> Question:  # noqa: ARG001
    letters = sorted(item["options"])
    options = tuple(item["options"][letter] for letter in letters)
    return Question(item["question"], "", options, str(letters.index(item["answer_idx"])))


def _medmcqa(item: Any, snippets: bool) -> Question:  # noqa: ARG001
    options = tuple(item[key] for key in ("opa", "opb", "opc", "opd"))
    return Question(item["question"], "", options, str(int(item["cop"]) - 1))


def _blurb(item: Any, snippets: bool) -> Question:  # noqa: ARG001
    return Question(item["sentence"], item.get("sentence2", ""), (), str(item["label"]))


READERS: dict[str, Callable[[Path], Iterator[Any]]] = {
    "pubmedqa": _values,
    "bioasq": _bioasq_questions,
    "medqa": _lines,
    "medmcqa": _lines,
    "blurb": _lines,
}
_PARSERS: dict[str, Callable[[Any, bool], Question | None]] = {
    "pubmedqa": _pubmedqa,
    "bioasq": _bioasq,
    "medqa": _medqa,
    "medmcqa": _medmcqa,
    "blurb": _blurb,
}


@dataclass(frozen=True)
class Split:
    """Training, development and test questions of one round."""

    train: list[Question]
    development: list[Question]
    test: list[Question]


def read_splits(task: str, path: Path, *, folds: int, snippets: bool = True) -> list[Split]:
    """Return the splits of a task, one per round.

    A directory of official files has its own splits: the ten folds of PubMedQA with one test set, or one split from
    `train`, `dev` and `test` files. A single file is divided into `folds` parts, stratified by answer in the order of
    the file; each part is the test set once, with the next part as the development set.
    """
    path = Path(path)
    if not path.is_dir():
        return _cross_validation(read_questions(task, path, snippets=snippets), folds, path)
    official = sorted(path.glob("pqal_fold*"))
    if official:
        test = read_questions(task, path / "test_set.json")
        read = [[read_questions(task, fold / f"{part}_set.json") for part in ("train", "dev")] for fold in official]
        return [Split(train, development, test) for train, development in read]
    parts: list[list[Question]] = []
    for part in ("train", "dev", "test"):
        found = sorted(file for file in path.glob(f"*{part}*.json*") if file.is_file())
        if not found and part != "test":
            raise InputError(
                f"{path}: has no .json or .jsonl file with {part!r} in its name; pass the official directory"
            )
        parts.append(read_questions(task, found[0], snippets=snippets) if found else parts[-1])
    return [Split(*parts)]


def _cross_validation(questions: list[Question], folds: int, path: Path) -> list[Split]:
    by_answer: dict[str, list[Question]] = {}
    for question in questions:
        by_answer.setdefault(question.answer, []).append(question)
    ordered = [question for group in by_answer.values() for question in group]
    parts = [ordered[fold::folds] for fold in range(folds)]
    if folds < 3 or not all(parts):
        raise InputError(
            f"{path}: {len(questions)} questions cannot be divided into {folds} folds; use at least 3 "
            "and at most as many as there are questions"
        )
    return [
        Split(
            train=[q for other in range(folds) if other not in (fold, (fold + 1) % folds) for q in parts[other]],
            development=parts[(fold + 1) % folds],
            test=parts[fold],
        )
        for fold in range(folds)
    ]
