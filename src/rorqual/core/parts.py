"""Parts of a message's content, in the form of OpenAI's API: text and pictures. A further kind is a class here and its place in `AnyPart`."""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rorqual.core.errors import DataError


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # which JSON can spell
        raise ValueError("holds half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]


class ContentPart(BaseModel):
    """Base of every kind of part: frozen, and an unknown key is an error. `plural` names the kind in errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    plural: ClassVar[str]
    type: str

    def label(self) -> str:
        """The part as a short text for people, keys and word counts: equal parts have equal labels, and others have not."""
        return f"[{self.type} {blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()}]"


class TextPart(ContentPart):
    """A piece of text. The pieces of one message are joined as they are, in order."""

    plural: ClassVar[str] = "texts"
    type: Literal["text"] = "text"
    text: Text

    def label(self) -> str:
        return self.text


class ImageURL(BaseModel):
    """Where a picture is: an address, or a `data:` URL that holds it. `detail`: how closely the model shall look."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    url: Annotated[Text, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(ContentPart):
    """A picture."""

    plural: ClassVar[str] = "images"
    type: Literal["image_url"] = "image_url"
    image_url: ImageURL


AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
"""A part as a file or a request holds it, told apart by `type`."""
KINDS: tuple[type[ContentPart], ...] = get_args(get_args(AnyPart)[0])
TYPES = frozenset(kind.model_fields["type"].default for kind in KINDS)
Content = str | Sequence[ContentPart]
"""What a message says."""
_READER: TypeAdapter[Any] = TypeAdapter(AnyPart)


def read_content(value: Any, where: str) -> Content:
    """Content from JSON or Parquet: a text as it is, a list as parts. Anything else is a `DataError` at `where`, or at `where[1]`."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"a {type(value).__name__}, not a text", where=where, remedy="Give a text, or a list of parts.")
    return tuple(_read_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _read_part(value: Any, where: str) -> ContentPart:
    try:
        part: ContentPart = _READER.validate_python(_without_none(value))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in item["loc"][1:])
        raise DataError(
            f"not a content part: {f'{place}: ' if place else ''}{item['msg']}",
            where=where,
            remedy='Give an object such as {"type": "text", "text": "hello"}.',
        ) from None
    return part


def _without_none(value: Any) -> Any:
    """`value` without keys that are None: Parquet gives every key that any row has."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value


def content_label(content: Content) -> str:
    """Content as text for people, keys and word counts: what is no text stands in brackets."""
    return content if isinstance(content, str) else "".join(part.label() for part in content)


def content_json(content: Content) -> str | list[dict[str, Any]]:
    """Content as JSON holds it: `read_content` gives it back."""
    return content if isinstance(content, str) else [part.model_dump(exclude_none=True) for part in content]


def foreign_part(content: Content, taken: Sequence[type[ContentPart]]) -> int | None:
    """The number of the first part that is of none of the kinds in `taken`; None where there is none."""
    if isinstance(content, str):
        return None
    return next((number for number, part in enumerate(content) if not isinstance(part, tuple(taken))), None)
