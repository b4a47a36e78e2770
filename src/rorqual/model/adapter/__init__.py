"""Kinds of fine-tuning: full, LoRA, ESFT, and training only the indexers of sparse attention.

The kind of fine-tuning decides which parameters a run trains. Importing this package registers all kinds.
"""

from rorqual.model.adapter.esft import ESFT
from rorqual.model.adapter.files import Adapter, adapter_of, find_base_and_adapters, fingerprint
from rorqual.model.adapter.indexer import TuneIndexer
from rorqual.model.adapter.lora import LoRA, merged_weights
from rorqual.model.adapter.tuning import Full, HasTrainedSlices, Selection, Tune, trained_parameters

__all__ = [
    "ESFT",
    "Adapter",
    "Full",
    "HasTrainedSlices",
    "LoRA",
    "Selection",
    "Tune",
    "TuneIndexer",
    "adapter_of",
    "find_base_and_adapters",
    "fingerprint",
    "merged_weights",
    "trained_parameters",
]
