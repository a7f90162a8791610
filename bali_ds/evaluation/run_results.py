"""Readers of the results in a run directory: metrics, evaluation and generated text, each checked by its schema."""

from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, RootModel, model_validator

from bali_ds.errors import InputError
from bali_ds.evaluation.generated_text import FILE
from bali_ds.files import nonempty_lines, read_json
from bali_ds.parsing import parse_json, validated, validated_list

EVALUATION = "evaluation.json"
"""Name of the file of a run directory with the results of the final evaluation."""
_WITH_LOSS = {"epoch", "seconds", "samples_per_second"}


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True)


class _Row(RootModel[dict[str, float]]):
    model_config = ConfigDict(strict=True)

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        row = self.root
        if not 0 <= row.get("step", -1) < 2**53:
            raise ValueError("step: is missing or out of range")
        if "loss" in row and (missing := _WITH_LOSS - row.keys()):
            raise ValueError(f"{min(missing)}: is missing")
        return self


def read_metrics(path: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.jsonl; an incomplete last line, which a killed run leaves, is skipped.

    Raises:
        InputError: a line before the last is not a JSON object of numbers by name, or lacks its step.
    """
    rows: list[dict[str, float]] = []
    damage: InputError | None = None
    for number, line in nonempty_lines(path) if path.is_file() else ():
        if damage:
            raise damage
        where = f"{path}:{number}"
        try:
            rows.append(validated(_Row, parse_json(line, where, non_finite=True), where).root)
        except InputError as error:
            damage = error
    return rows


_Fraction = Annotated[float, Field(ge=-1, le=1)]


class _Measure(_Schema):
    value: _Fraction
    low: _Fraction
    high: _Fraction


class _Measures(_Schema):
    acc_at_1: _Measure = Field(alias="acc@1")
    acc_at_5: _Measure = Field(alias="acc@5")
    mrr: _Measure


class _Subset(_Measures):
    n: int


class _Linking(_Schema):
    untrained: Annotated[dict[str, _Subset], Field(min_length=1)] | None = None
    trained: Annotated[dict[str, _Subset], Field(min_length=1)] | None = None
    difference: dict[str, _Measures] = {}

    @model_validator(mode="after")
    def _same_subsets(self) -> Self:
        if (
            self.untrained
            and self.trained
            and not self.untrained.keys() == self.trained.keys() == self.difference.keys()
        ):
            raise ValueError("untrained, trained and difference have different subsets")
        return self


class _Neighbor(_Schema):
    name: str
    cosine: float


class _Example(_Schema):
    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, list[_Neighbor]]
    name: str


class _Embedding(_Schema):
    groups: list[str]
    names: list[str]
    maps: dict[str, list[Annotated[list[_Fraction], Field(min_length=2, max_length=2)]]]
    neighbors: list[_Example]

    @model_validator(mode="after")
    def _same_concepts(self) -> Self:
        if {len(self.groups)} != {len(self.names), *map(len, self.maps.values())}:
            raise ValueError("groups, names and maps have different lengths")
        if any(example.__pydantic_extra__.keys() != self.maps.keys() for example in self.neighbors):
            raise ValueError("neighbors and maps are of different models")
        return self


class _Evaluation(_Schema):
    linking: _Linking | None = None
    retrieval: dict[str, float] = {}
    embedding: _Embedding | None = None
    made_from: dict[str, str] = {}

    @model_validator(mode="after")
    def _both_directions(self) -> Self:
        if self.retrieval and not {"text_to_graph_r@1", "graph_to_text_r@1"} <= self.retrieval.keys():
            raise ValueError("retrieval: lacks R@1 of a direction")
        return self


def read_evaluation(run: Path) -> dict[str, Any]:
    """Return the content of a run's evaluation.json, empty if there is none.

    Raises:
        InputError: it lacks a key, or has a value of another type or out of range.
    """
    path = run / EVALUATION
    if not path.is_file():
        return {}
    content: dict[str, Any] = read_json(path, non_finite=True)
    validated(_Evaluation, content, str(path))
    return content


class _PassageTexts(_Schema):
    true: str
    written: str


class _FactTexts(_Schema):
    true: list[str]
    written: list[str]


class _Generated(_Schema):
    sample: str
    passage: _PassageTexts
    facts: _FactTexts


def read_generated(run: Path) -> list[dict[str, Any]]:
    """Return the content of a run's generated.json, empty if there is none.

    Raises:
        InputError: it lacks a key, or has a value of another type.
    """
    path = run / FILE
    content: list[dict[str, Any]] = read_json(path) if path.is_file() else []
    validated_list(_Generated, content, str(path))
    return content
