"""Content parts of a message, in the form of OpenAI's API: text and images.

To add a kind, write a class here and add it to `AnyPart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rorqual.core.errors import DataError


def _writable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can spell a lone surrogate
        raise ValueError("contains half of a surrogate pair") from None
    return text


Text = Annotated[str, AfterValidator(_writable)]


class ContentPart(BaseModel):
    """Base class of content parts: frozen, and unknown keys are errors. `plural` names the kind in error messages."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    plural: ClassVar[str]
    type: str

    def label(self) -> str:
        """Return a short text for display, keys and word counts. Equal parts have equal labels; different parts differ."""
        return f"[{self.type} {blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()}]"


class TextPart(ContentPart):
    """A piece of text. The text parts of a message are joined in order, without separators."""

    plural: ClassVar[str] = "texts"
    type: Literal["text"] = "text"
    text: Text

    def label(self) -> str:
        return self.text


class ImageURL(BaseModel):
    """The location of an image: a URL, or a `data:` URL that contains it. `detail` says how closely the model shall look."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    url: Annotated[Text, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(ContentPart):
    """An image."""

    plural: ClassVar[str] = "images"
    type: Literal["image_url"] = "image_url"
    image_url: ImageURL


AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
"""Any content part of a file or request, selected by `type`."""
KINDS: tuple[type[ContentPart], ...] = get_args(get_args(AnyPart)[0])
TYPES = frozenset(kind.model_fields["type"].default for kind in KINDS)
Content = str | Sequence[ContentPart]
"""The content of a message: text, or a sequence of parts."""
_READER: TypeAdapter[Any] = TypeAdapter(AnyPart)


def read_content(value: Any, where: str) -> Content:
    """Read content from JSON or Parquet: text stays text, a list becomes parts.

    Raises DataError at `where`, or at `where[1]` for a part, if the value is anything else.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"a {type(value).__name__}, not text", where=where, remedy="Give text, or a list of parts.")
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
    """Return `value` without keys that are None: Parquet gives each row every key that any row has."""
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value


def content_label(content: Content) -> str:
    """Return content as text for display, keys and word counts. Parts other than text appear in brackets."""
    return content if isinstance(content, str) else "".join(part.label() for part in content)


def content_json(content: Content) -> str | list[dict[str, Any]]:
    """Return content as JSON holds it. `read_content` reads it back."""
    return content if isinstance(content, str) else [part.model_dump(exclude_none=True) for part in content]


def foreign_part(content: Content, taken: Sequence[type[ContentPart]]) -> int | None:
    """Return the index of the first part of a kind that is not in `taken`, or None."""
    if isinstance(content, str):
        return None
    return next((number for number, part in enumerate(content) if not isinstance(part, tuple(taken))), None)
