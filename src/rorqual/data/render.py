"""Render conversations to training samples with a loss mask."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat.chat_format import ChatFormat
from rorqual.data.pack import Sample


@dataclass(frozen=True)
class RenderedSet:
    """Training samples.

    `skipped` counts conversations without any token that gets a loss, and `cut` counts truncated samples.
    """

    samples: list[Sample]
    skipped: int = 0
    cut: int = 0


def render_samples(
    conversations: Iterable[Sequence[Message]], chat: ChatFormat, context: int, *, truncate: bool = False
) -> RenderedSet:
    """Render conversations to samples of at most `context` tokens. Each assistant turn gets a loss in exactly one sample.

    With `truncate`, samples longer than `context` are truncated. Otherwise, a DataError names the first conversation
    that is too long. A conversation is skipped and counted if no token of its samples gets a loss after truncation.
    Raises DataError if no sample remains.
    """
    samples: list[Sample] = []
    skipped = cut = 0
    for number, messages in enumerate(conversations, start=1):
        where = f"conversation {number}"
        usable = 0
        for sample in _samples(chat, messages, where):
            if len(sample) > context:
                if not truncate:
                    raise DataError(
                        f"{len(sample)} tokens do not fit a context of {context}",
                        where=where,
                        remedy=f"Set context={len(sample)} or more, or set truncate=true to truncate the conversation.",
                    )
                sample = sample.cut(context)
                cut += 1
            if sample.n_trained:
                samples.append(sample)
                usable += 1
        skipped += not usable
    if not samples:
        raise DataError(
            f"nothing to train on in {skipped} conversations",
            where="data",
            remedy="Each conversation needs an assistant turn that fits the context.",
        )
    return RenderedSet(samples, skipped, cut)


def _samples(chat: ChatFormat, messages: Sequence[Message], where: str) -> list[Sample]:
    try:
        return [Sample(rendered.ids, rendered.mask) for rendered in chat.samples(messages)]
    except DataError as error:
        raise DataError(error.what, where=f"{where}: {error.where}", remedy=error.remedy) from None
