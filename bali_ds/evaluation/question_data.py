"""Readers of question answering and classification data sets in their official formats.

| task | file | from |
| --- | --- | --- |
| pubmedqa | `ori_pqal.json`, or the folder of official folds (`pqal_fold0/train_set.json`, ..., `test_set.json`) | github.com/pubmedqa/pubmedqa |
| bioasq | training or golden JSON of task B; yes/no questions | participants-area.bioasq.org |
| medqa | `phrases_no_exclude_{train,dev,test}.jsonl` | github.com/jind11/MedQA |
| medmcqa | `{train,dev}.json`, one object a line | github.com/medmcqa/medmcqa |
| blurb | JSON lines with `sentence` and `label`, as LinkBERT's preprocessing writes the BLURB tasks | github.com/michiyasunaga/LinkBERT |
"""  # noqa: E501

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from bali_ds.errors import InputError
from bali_ds.files import read_json, read_json_lines
from bali_ds.parsing import quoted, validated

_MOST_VALUES = 20_000_000


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
        task: pubmedqa, bioasq, medqa, medmcqa or blurb.
        path: file to read.
        snippets: whether the snippets of BioASQ questions are read as context.

    Raises:
        InputError: the file cannot be read, or a question lacks a field of the task's format.
    """
    if task not in _FORMATS:
        raise InputError(f"task {task!r} is unknown; use one of {', '.join(_FORMATS)}")
    schema, remedy = _FORMATS[task], f"check that it is in the {task} format"
    found = (validated(schema, item, where, remedy).question(snippets) for where, item in _ITEMS[task](path))
    questions = [question for question in found if question]
    if not questions:
        raise InputError(f"{path}: holds no {task} questions; check the file and --task")
    return questions


class _Item(BaseModel, ABC):
    """One item of a file; the fields are those of its format."""

    model_config = ConfigDict(strict=True)

    @abstractmethod
    def question(self, snippets: bool) -> Question | None:
        """Return the item as a question; None if it is of a kind that is not evaluated."""


class _PubMedQA(_Item):
    QUESTION: str
    CONTEXTS: list[str]
    final_decision: str

    def question(self, snippets: bool) -> Question:  # noqa: ARG002
        return Question(self.QUESTION, " ".join(self.CONTEXTS), (), self.final_decision)


class _Snippet(BaseModel):
    text: str


class _BioASQ(_Item):
    type: str
    body: str
    exact_answer: Any = None
    snippets: list[_Snippet] = []

    @model_validator(mode="after")
    def _has_an_answer(self) -> Self:
        if self.type == "yesno":
            answer = (
                self.exact_answer[0] if self.exact_answer and isinstance(self.exact_answer, list) else self.exact_answer
            )
            if not isinstance(answer, str):
                raise ValueError("exact_answer: is missing or not a string")
            self.exact_answer = answer
        return self

    def question(self, snippets: bool) -> Question | None:
        if self.type != "yesno":
            return None
        context = " ".join(snippet.text for snippet in self.snippets) if snippets else ""
        return Question(self.body, context, (), self.exact_answer.strip().lower())


class _MedQA(_Item):
    question_text: str = Field(alias="question")
    options: dict[str, str]
    answer_idx: str

    @model_validator(mode="after")
    def _answer_is_an_option(self) -> Self:
        if self.answer_idx not in self.options:
            raise ValueError(f"answer_idx: {quoted(self.answer_idx)} is not an option")
        return self

    def question(self, snippets: bool) -> Question:  # noqa: ARG002
        letters = sorted(self.options)
        options = tuple(self.options[letter] for letter in letters)
        return Question(self.question_text, "", options, str(letters.index(self.answer_idx)))


class _MedMCQA(_Item):
    question_text: str = Field(alias="question")
    opa: str
    opb: str
    opc: str
    opd: str
    cop: int = Field(ge=1, le=4)

    def question(self, snippets: bool) -> Question:  # noqa: ARG002
        return Question(self.question_text, "", (self.opa, self.opb, self.opc, self.opd), str(self.cop - 1))


class _Blurb(_Item):
    sentence: str
    sentence2: str = ""
    label: str | int | float | bool

    def question(self, snippets: bool) -> Question:  # noqa: ARG002
        return Question(self.sentence, self.sentence2, (), str(self.label))


class _BioASQFile(BaseModel):
    questions: list[Any]


def _entries(path: Path) -> Iterator[tuple[str, Any]]:
    for key, value in validated(_Entries, read_json(path, most_values=_MOST_VALUES), str(path)).root.items():
        yield f"{path}: item {key}", value


class _Entries(RootModel[dict[str, Any]]):
    """The items of PubMedQA by their id."""


def _listed(path: Path) -> Iterator[tuple[str, Any]]:
    for number, value in enumerate(
        validated(_BioASQFile, read_json(path, most_values=_MOST_VALUES), str(path)).questions, 1
    ):
        yield f"{path}: item {number}", value


def _lines(path: Path) -> Iterator[tuple[str, Any]]:
    for number, value in read_json_lines(path):
        yield f"{path}:{number}", value


_ITEMS: dict[str, Callable[[Path], Iterator[tuple[str, Any]]]] = {
    "pubmedqa": _entries,
    "bioasq": _listed,
    "medqa": _lines,
    "medmcqa": _lines,
    "blurb": _lines,
}
_FORMATS: dict[str, type[_Item]] = {
    "pubmedqa": _PubMedQA,
    "bioasq": _BioASQ,
    "medqa": _MedQA,
    "medmcqa": _MedMCQA,
    "blurb": _Blurb,
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
