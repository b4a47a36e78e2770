"""Dotted overrides: a field, and a field that holds one of several kinds."""

from __future__ import annotations

from itertools import permutations
from typing import Annotated, Literal

import pytest
from pydantic import Field, SerializeAsAny

from rorqual.core.config import Config, KindConfig, one_of, override_fields
from rorqual.core.errors import ConfigError


class Shape(KindConfig):
    colour: str = "red"


class Circle(Shape):
    kind: Literal["circle"] = "circle"
    radius: float = 1.0


class Square(Shape):
    kind: Literal["square"] = "square"
    side: float
    corners: tuple[str, ...] = ("sharp",)


class Drawing(Config):
    width: int = Field(10, ge=1)
    shape: Annotated[SerializeAsAny[Shape], one_of(Shape)] = Circle()
    more: tuple[Annotated[SerializeAsAny[Shape], one_of(Shape)], ...] = (Circle(radius=2.0), Circle())


def test_another_kind_keeps_what_all_kinds_have_and_begins_the_rest_anew() -> None:
    drawing = Drawing(shape=Circle(colour="blue", radius=7.0))
    made = override_fields(drawing, ["shape.kind=square", "shape.side=3"])
    assert made == Drawing(shape=Square(colour="blue", side=3.0))
    assert override_fields(made, ["shape.kind=circle"]) == Drawing(shape=Circle(colour="blue", radius=1.0))
    assert drawing.shape == Circle(colour="blue", radius=7.0)


def test_the_order_of_the_words_is_free() -> None:
    words = ["shape.side=3", "shape.kind=square", "width=4", "shape.corners=[round, cut]"]
    made = {override_fields(Drawing(), order).model_dump_json() for order in permutations(words)}
    assert len(made) == 1
    assert override_fields(Drawing(), words).shape == Square(side=3, corners=("round", "cut"))


def test_the_kind_that_is_there_changes_nothing() -> None:
    drawing = Drawing(shape=Circle(radius=7.0))
    assert override_fields(drawing, ["shape.kind=circle", "shape.colour=green"]).shape == Circle(
        colour="green", radius=7.0
    )


def test_in_a_list() -> None:
    made = override_fields(Drawing(), ["more.1.kind=square", "more.1.side=5", "more.0.radius=3"])
    assert made.more == (Circle(radius=3.0), Square(side=5.0))


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["shape.kind=circel"], "Did you mean 'circle'"),
        (["shape.kind=square"], "side.*required"),
        (["shape.kind=square", "shape.side=3", "shape.radius=2"], "unknown key 'shape.radius'"),
        (["width.kind=square"], "unknown key 'width.kind'"),
        (["form.kind=square"], "Did you mean|unknown key"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        override_fields(Drawing(), words)
