"""Model definitions. Training, rollouts and serving use the same model definition."""

from rorqual.model.account import Account, account
from rorqual.model.config import ModelConfig, Stage
from rorqual.model.decoder import Cache, Decoder, DecoderOutput
from rorqual.model.init import build

__all__ = ["Account", "Cache", "Decoder", "DecoderOutput", "ModelConfig", "Stage", "account", "build"]
