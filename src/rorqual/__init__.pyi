"""Type stubs of the public interface, because `__init__.py` imports each name only on first use."""

from rorqual.core.errors import RorqualError as RorqualError
from rorqual.core.records import Message as Message
from rorqual.core.records import RunDir as RunDir
from rorqual.core.registry import load_plugins as load_plugins
from rorqual.core.sampling import SamplingParams as SamplingParams
from rorqual.engine.config import EngineConfig as EngineConfig
from rorqual.engine.engine import Engine as Engine
from rorqual.engine.request import Completion as Completion
from rorqual.engine.request import Request as Request
from rorqual.evals.evaluating import evaluate as evaluate
from rorqual.evals.results import compare as compare
from rorqual.evals.table import table as table
from rorqual.model.config import ModelConfig as ModelConfig
from rorqual.recipes.distil import distil as distil
from rorqual.recipes.distil import on_policy as on_policy
from rorqual.recipes.dpo import dpo as dpo
from rorqual.recipes.grpo import grpo as grpo
from rorqual.recipes.pretrain import pretrain as pretrain
from rorqual.recipes.sft import sft as sft
from rorqual.tasks.find import load_task as load_task
from rorqual.tasks.task import Problem as Problem
from rorqual.tasks.task import Task as Task
from rorqual.tasks.task import Verdict as Verdict
from rorqual.train.loop import fit as fit
from rorqual.train.run import Run as Run

__version__: str
