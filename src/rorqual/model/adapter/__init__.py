"""Kinds of fine-tuning: full, LoRA, ESFT, and training only the indexers of sparse attention.

The kind of fine-tuning decides which parameters a run trains. Importing this package registers all kinds.
"""

from rorqual.model.adapter.esft import ESFT
from rorqual.model.adapter.files import Adapter, adapter_of, fingerprint, unfold
from rorqual.model.adapter.indexer import TuneIndexer
from rorqual.model.adapter.lora import LoRA, whole_weights
from rorqual.model.adapter.tuning import Full, HoldsParts, Selection, Tune, trained

__all__ = [
    "ESFT",
    "Adapter",
    "Full",
    "HoldsParts",
    "LoRA",
    "Selection",
    "Tune",
    "TuneIndexer",
    "adapter_of",
    "fingerprint",
    "trained",
    "unfold",
    "whole_weights",
]
