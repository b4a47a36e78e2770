"""A reply read while it is being written, as the routes need it: the readers of the chat formats."""

from __future__ import annotations

from rorqual.data.chat.stops import Stops
from rorqual.data.chat.stream import Piece, Reader, ToolDelta

__all__ = ["Piece", "Reader", "Stops", "ToolDelta"]
