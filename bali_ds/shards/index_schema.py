"""Schema of the index of a shard set, `index.json`, in pydantic."""

from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, FailFast, Field, model_validator

from bali_ds.parsing import quoted
from bali_ds.shards.layout import SMALLEST_SAMPLE

_Count = Annotated[int, Field(ge=0, lt=2**48)]
_Id = Annotated[int, Field(ge=0, lt=2**31)]


def _each_is_a_count(counts: dict[str, Any]) -> dict[str, Any]:
    """Refuse the first value that is not a count; pydantic would collect all of them, however many."""
    for name, count in counts.items():
        if type(count) is not int or not 0 <= count < 2**48:
            raise ValueError(f"{name}: {quoted(count)} is not a count")
    return counts


_Counts = Annotated[dict[str, Any], AfterValidator(_each_is_a_count)]


class _Schema(BaseModel):
    model_config = ConfigDict(strict=True, extra="allow")


class _Graph(_Schema):
    names: _Id
    concepts: _Id
    relations: _Id


class _Tokenizer(_Schema):
    name: str
    fingerprint: str
    vocab_size: _Id
    cls_id: _Id
    sep_id: _Id
    pad_id: _Id
    mask_id: _Id
    special_ids: Annotated[list[_Id], FailFast()]

    @model_validator(mode="after")
    def _ids_are_tokens(self) -> Self:
        if max(self.cls_id, self.sep_id, self.pad_id, self.mask_id, *self.special_ids) >= self.vocab_size:
            raise ValueError(f"a special token is outside of the vocabulary of {self.vocab_size} tokens")
        return self


class _Neighbors(_Schema):
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}
    sources: list[str] = []
    largest_degree: _Count = 0


class DescriptionSchema(_Schema):
    """What a tar says of the shard set that it belongs to."""

    graph_fingerprint: str
    graph: _Graph
    tokenizer: _Tokenizer
    max_tokens: Annotated[int, Field(ge=2, le=2**16)]
    max_name_tokens: Annotated[int, Field(ge=1, le=2**16)]
    stored_fan_out: Annotated[int, Field(ge=0, le=2**16)]
    neighbours: _Neighbors = _Neighbors()


class _Shard(_Schema):
    name: Any  # checked before, with a message of its own
    split: Literal["train", "validation"]
    samples: _Count
    bytes: _Count
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")

    @model_validator(mode="after")
    def _samples_fit(self) -> Self:
        if self.samples * SMALLEST_SAMPLE > self.bytes:
            raise ValueError(f"{self.bytes} bytes cannot hold {self.samples} samples")
        return self


class IndexSchema(DescriptionSchema):
    """The index of a shard set."""

    fingerprint: str
    counts: _Counts
    shards: Annotated[list[_Shard], FailFast()]


class ReportSchema(_Schema):
    """The report of a build, as far as it is read again."""

    counts: _Counts
