"""Kinds of fine-tuning: full, LoRA, ESFT, and training only the indexers of sparse attention.

The kind of fine-tuning decides which parameters a run trains. Importing `rorqual.model.adapter` registers all kinds of
fine-tuning.
"""

from rorqual.model.adapter.esft import ESFT
from rorqual.model.adapter.files import Adapter, find_base_and_adapters, fingerprint, read_adapter_info
from rorqual.model.adapter.indexer import IndexerTuning
from rorqual.model.adapter.lora import LoRA, merged_weights
from rorqual.model.adapter.tuning import FullTuning, HasTrainedSlices, SelectedExperts, Tune, trained_parameters

__all__ = [
    "ESFT",
    "Adapter",
    "FullTuning",
    "HasTrainedSlices",
    "IndexerTuning",
    "LoRA",
    "SelectedExperts",
    "Tune",
    "find_base_and_adapters",
    "fingerprint",
    "merged_weights",
    "read_adapter_info",
    "trained_parameters",
]
