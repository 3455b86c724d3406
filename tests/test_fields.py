"""Fields of configs: types by annotation, ranges by metadata, one form of message."""

from __future__ import annotations

import math
import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pytest

from wm_agents.cli.flags import Parser
from wm_agents.errors import ConfigurationError
from wm_agents.project.json_schema import _section_schema
from wm_envs.fields import FieldError, above, at_least, at_most, below, check_fields, fail, field_docs, share


@dataclass(frozen=True)
class ToyConfig:
    """A config with one field of each kind."""

    num: int = field(default=3, metadata=at_least(2))
    """Number of toys."""
    rate: float = field(default=0.5, metadata=above(0) | at_most(1))
    drop: float = field(default=0.0, metadata=at_least(0) | below(1))
    part: float = field(default=0.5, metadata=share())
    limit: float | None = field(default=None, metadata=above(0))
    levels: tuple[float, ...] = field(default=(0.0, 0.3), metadata=at_least(0))
    kind: Literal["a", "b"] = "a"
    fast: bool | Literal["auto"] = "auto"
    far: float = math.inf

    def __post_init__(self) -> None:
        check_fields(self)
        if self.drop > self.rate:
            fail(self, "drop", f"at most rate ({self.rate})")


@pytest.mark.parametrize(
    "values",
    [
        {"num": 2, "rate": 1, "drop": 0, "part": 0, "limit": None, "levels": (), "fast": True},
        {"num": 10**9, "part": 1.0, "limit": 1e-9, "levels": [0, 2.5], "kind": "b", "far": math.inf},
    ],
)
def test_values_at_their_bounds_are_accepted(values: dict[str, Any]) -> None:
    assert {name: getattr(ToyConfig(**values), name) for name in values} == values


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num": 1}, "ToyConfig.num must be a whole number of at least 2, got 1"),
        ({"num": 2.5}, "ToyConfig.num must be a whole number of at least 2, got 2.5"),
        ({"num": True}, "ToyConfig.num must be a whole number of at least 2, got True"),
        ({"rate": 0.0}, "ToyConfig.rate must be a number above 0 and at most 1, got 0.0"),
        ({"rate": 1.01}, "ToyConfig.rate must be a number above 0 and at most 1, got 1.01"),
        ({"drop": 1.0}, "ToyConfig.drop must be a number of at least 0 and below 1, got 1.0"),
        ({"part": -0.1}, "ToyConfig.part must be a number between 0 and 1, got -0.1"),
        ({"limit": 0}, "ToyConfig.limit must be a number above 0, or None, got 0"),
        ({"levels": (0.1, -0.1)}, "ToyConfig.levels must be a list of numbers of at least 0, got (0.1, -0.1)"),
        ({"kind": "c"}, "ToyConfig.kind must be one of 'a', 'b', got 'c'"),
        ({"fast": "no"}, "ToyConfig.fast must be true or false or 'auto', got 'no'"),
        ({"part": math.nan}, "ToyConfig.part must be a finite number, got nan"),
        ({"far": -math.inf}, "ToyConfig.far must be a finite number, got -inf"),
        ({"drop": 0.6}, "ToyConfig.drop must be at most rate (0.5), got 0.6"),
    ],
)
def test_other_values_are_rejected_in_one_form(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        ToyConfig(**values)
    assert str(caught.value) == message
    assert str(pickle.loads(pickle.dumps(caught.value))) == message
    assert isinstance(caught.value, FieldError) and caught.value.name in values


def test_numpy_scalars_become_python_numbers() -> None:
    cfg = ToyConfig(num=np.int64(4), rate=np.float32(0.5))  # type: ignore[arg-type]
    assert type(cfg.num) is int and type(cfg.rate) is float


def test_schema_and_help_have_the_same_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    properties = _section_schema(ToyConfig)["properties"]
    assert (properties["num"]["minimum"], properties["levels"]["items"]["minimum"]) == (2, 0)
    assert properties["rate"]["exclusiveMinimum"] == 0 and properties["rate"]["maximum"] == 1
    assert properties["num"]["description"] == field_docs(ToyConfig)["num"] == "Number of toys. At least 2."
    parser = Parser(ToyConfig, prog="toy")
    with pytest.raises(SystemExit):
        parser.parse_args(["--help"])
    assert "Number of toys. At least 2." in " ".join(capsys.readouterr().out.split())
    with pytest.raises(SystemExit):
        parser.build(parser.arguments(["--num", "1"]))
    assert "toy: --num must be a whole number of at least 2, got 1" in capsys.readouterr().err
