"""Render conversations to samples with a loss mask, and check them against the context length."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rorqual.core.errors import DataError
from rorqual.core.records import Message
from rorqual.data.chat.base import ChatFormat
from rorqual.data.pack import Sample


@dataclass(frozen=True)
class RenderedSet:
    """Samples to train on. `skipped` counts conversations with nothing to train on, `cut` the samples that were truncated."""

    samples: list[Sample]
    skipped: int = 0
    cut: int = 0


def render_samples(
    conversations: Iterable[Sequence[Message]], chat: ChatFormat, context: int, *, truncate: bool = False
) -> RenderedSet:
    """Render conversations to samples of at most `context` tokens, in which every assistant turn is trained once.

    With `truncate` a longer sample is cut; without it, a DataError names the conversation. A conversation with nothing to
    train on, also after a cut, is skipped and counted. Raises DataError if no sample is left.
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
                        remedy=f"Set context={len(sample)} or more, or truncate=true to cut it.",
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
