"""The sources of training batches, one module per kind. Importing this package registers all kinds of sources."""

from rorqual.train.sources.conversations import ConversationsConfig
from rorqual.train.sources.distilled import DistilledConfig
from rorqual.train.sources.on_policy import OnPolicyConfig
from rorqual.train.sources.preferences import PreferencesConfig
from rorqual.train.sources.rollouts import RolloutConfig
from rorqual.train.sources.source import Source, SourceConfig, SourceInputs, StepBatches
from rorqual.train.sources.text import TextConfig
from rorqual.train.sources.worked import WorkedConfig

__all__ = [
    "ConversationsConfig",
    "DistilledConfig",
    "OnPolicyConfig",
    "PreferencesConfig",
    "RolloutConfig",
    "Source",
    "SourceConfig",
    "SourceInputs",
    "StepBatches",
    "TextConfig",
    "WorkedConfig",
]
