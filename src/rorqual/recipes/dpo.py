"""Direct preference optimization on pairs of replies."""

from __future__ import annotations

from rorqual.core.config import Count, Positive, RowLength, Rows, Seed, check_arguments
from rorqual.recipes.start import finetune_optim, indexer_objectives, start_settings
from rorqual.train.balance import BalanceConfig
from rorqual.train.objectives import DPO
from rorqual.train.run import Run
from rorqual.train.sources import PreferencesConfig


@check_arguments
def dpo(
    data: str,
    start: str,
    beta: Positive = 0.1,
    reference: str = "",
    steps: Count = 100,
    pairs: Rows = 16,
    row: RowLength = 512,
    lr: Positive = 1e-5,
    seed: Seed = 0,
) -> Run:
    """Train a model with DPO on pairs of a preferred and a non-preferred reply, in the form of OpenAI's fine-tuning API.

    Each line of `data` is `{"input": {"messages": [...]}, "preferred_output": [MESSAGE], "non_preferred_output": [MESSAGE]}`. A
    larger `beta` keeps the model nearer to the run `reference`, by default the run that training starts from. For
    tune.kind=lora, set a larger `lr`, such as 3e-4.
    """
    begin, model, chat = start_settings(start, "bytes", "small", row)
    return Run(
        recipe="dpo",
        seed=seed,
        steps=steps,
        start=begin,
        chat=chat,
        model=model,
        source=PreferencesConfig(data=data, reference=reference or start, pairs=pairs, row=row),
        objectives=(DPO(beta=beta), *indexer_objectives(model)),
        optim=finetune_optim(lr),
        balance=BalanceConfig(gamma=0.0),
    )
