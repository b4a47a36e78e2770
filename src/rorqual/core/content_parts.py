"""Content parts of a message (text and images) in the format of OpenAI's API.

To add a type of content part, define a class for the type here and add the class to `AnyPart`.
"""

from __future__ import annotations

from collections.abc import Sequence
from hashlib import blake2b
from typing import Annotated, Any, ClassVar, Literal, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from rorqual.core.errors import DataError
from rorqual.core.rows import without_null


def _reject_surrogates(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:  # a JSON escape such as "\ud83d" can contain a lone surrogate
        raise ValueError("contains a lone surrogate") from None
    return text


Text = Annotated[str, AfterValidator(_reject_surrogates)]


class ContentPart(BaseModel):
    """Base class of content parts. Content parts are frozen, and unknown keys raise an error.

    `plural` names the class in error messages, for example "images".
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    plural: ClassVar[str]
    type: str

    def label(self) -> str:
        """Return a short text for display, cache keys and word counts. Two parts have the same label only if the parts are
        equal."""
        return f"[{self.type} {blake2b(self.model_dump_json().encode(), digest_size=8).hexdigest()}]"


class TextPart(ContentPart):
    """A text part. The text parts of a message are concatenated without separators."""

    plural: ClassVar[str] = "texts"
    type: Literal["text"] = "text"
    text: Text

    def label(self) -> str:
        return self.text


class ImageURL(BaseModel):
    """The URL of an image, or a `data:` URL that contains the image. `detail` is the resolution hint of OpenAI's API."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    url: Annotated[Text, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(ContentPart):
    """An image part."""

    plural: ClassVar[str] = "images"
    type: Literal["image_url"] = "image_url"
    image_url: ImageURL


AnyPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
"""Union of all classes of content parts. The key `type` of a part selects the class."""
KINDS: tuple[type[ContentPart], ...] = get_args(get_args(AnyPart)[0])
TYPES = frozenset(kind.model_fields["type"].default for kind in KINDS)
Content = str | Sequence[ContentPart]
"""The content of a message: text, or a sequence of parts."""
_READER: TypeAdapter[Any] = TypeAdapter(AnyPart)


def read_content(value: Any, where: str) -> Content:
    """Parse the content of a message from JSON or Parquet. If `value` is a string, return the string; if `value` is a list,
    return a tuple of content parts.

    Raises DataError if `value` is invalid. The error names `where`, or `where[1]` if the content part with index 1 is
    invalid.
    """
    if isinstance(value, str):
        return value
    if not isinstance(value, list):
        raise DataError(f"a {type(value).__name__}, not text", where=where, remedy="Give text, or a list of parts.")
    return tuple(_read_part(part, f"{where}[{number}]") for number, part in enumerate(value))


def _read_part(value: Any, where: str) -> ContentPart:
    try:
        part: ContentPart = _READER.validate_python(without_null(value))
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(str(key) for key in item["loc"][1:])
        raise DataError(
            f"not a content part: {f'{place}: ' if place else ''}{item['msg']}",
            where=where,
            remedy='Give an object such as {"type": "text", "text": "hello"}.',
        ) from None
    return part


def content_label(content: Content) -> str:
    """Return content as text for display, cache keys and word counts. An image is represented by a label in brackets."""
    return content if isinstance(content, str) else "".join(part.label() for part in content)


def content_json(content: Content) -> str | list[dict[str, Any]]:
    """Convert content to the JSON form that `read_content` parses."""
    return content if isinstance(content, str) else [part.model_dump(exclude_none=True) for part in content]


def first_unsupported_part(content: Content, accepted: Sequence[type[ContentPart]]) -> int | None:
    """Return the index of the first part whose class is not in `accepted`, or None if the class of every part is in
    `accepted`."""
    if isinstance(content, str):
        return None
    return next((number for number, part in enumerate(content) if not isinstance(part, tuple(accepted))), None)
