"""Sizes of the quickstart: the numbers of steps, problems and samples of its stages."""

from __future__ import annotations

from rorqual.core.config import Config, Count, NonNegative
from rorqual.factory.config import KeptSamples
from rorqual.recipes.models import Size

TASK = "families:add,sub,mod,swap,count,kk"
"""The teacher's task: six problem families of four kinds (arithmetic, step-by-step algorithms, text manipulation,
logic)."""
STUDENT_TASK = "families:add,sub,swap"
"""The student's task: three problem families. A random guess at an answer is correct in at most 1 of 120 cases, so correct
answers show learning."""


class QuickstartScale(Config):
    """The numbers of steps and samples of a quickstart, chosen on the dev split with seeds other than the default 0.

    Evaluations sample at temperature 0.6 and top-p 0.95, as for DeepSeek-R1 (R1, section 3). With greedy decoding, a
    model that starts to think with probability 0.4 would never think.

    The teacher's training also contains plain problems, and prompts that the teacher must decline (`Families.plain`): the fraction
    `sft_plain` of each family's worked solutions, and the fraction `grpo_plain` of its problems of GRPO. The evaluations contain neither.

    The base student is first trained with reasoning on the fraction `student_able_think` of its problems. A few final training
    steps at the low learning rate `student_base_lr` use reasoning on the fraction `student_think` of the problems. The trained
    base student can solve some problems by thinking, but hardly ever thinks.

    The branches `distilled` and `reinforced` cost about the same number of core-seconds, as measured with seeds other
    than the default 0. The branch `distilled` samples the teacher on `distil_problems` problems and trains for
    `distil_steps` steps on the correct answers. The branch `reinforced` trains for `rival_steps` steps of GRPO.

    `student_lr` and `student_adamw_lr` are the learning rates for further training of a student: half of the learning rates for
    a new model.

    `rival_agreement` is the largest allowed difference between the trainer's and the sampler's log-probability of a
    token during GRPO of the student. In half a million tokens, the log-probabilities of trainer and sampler differed by
    at most 1.5e-4 nats, at a very unlikely token.

    `distil_keep` selects the teacher's samples to train on. The value `all` also turns off the filters. The value `all`
    is meant for a teacher that is trained too little to answer correctly.
    """

    model: Size
    sft_steps: Count
    sft_rows: Count
    sft_hard: NonNegative
    sft_plain: NonNegative
    think: NonNegative
    grpo_steps: Count
    grpo_problems: Count
    grpo_samples: Count
    grpo_hard: NonNegative
    grpo_plain: NonNegative
    lr: NonNegative
    student: Size
    student_able_steps: Count
    student_able_think: NonNegative
    student_base_steps: Count
    student_think: NonNegative
    student_hard: NonNegative
    distil_problems: Count
    distil_steps: Count
    distil_keep: KeptSamples = "right"
    rival_steps: Count
    rival_problems: Count
    rival_samples: Count
    rival_lr: NonNegative
    student_per_cell: Count
    rival_agreement: NonNegative = 1e-3
    student_base_lr: NonNegative = 0.002
    student_lr: NonNegative = 0.006
    student_adamw_lr: NonNegative = 0.002
    row: Count = 128
    max_tokens: Count = 80
    temperature: NonNegative = 0.6
    top_p: NonNegative = 0.95
    per_cell: Count


FULL = QuickstartScale(
    model="small",
    sft_steps=1300,
    sft_rows=32,
    sft_hard=0.2,
    sft_plain=0.35,
    think=0.5,
    grpo_steps=40,
    grpo_problems=32,
    grpo_samples=12,
    grpo_hard=0.7,
    grpo_plain=0.2,
    lr=1e-4,
    student="student",
    student_able_steps=600,
    student_able_think=0.4,
    student_base_steps=60,
    student_think=0.07,
    student_hard=1.0,
    distil_problems=4000,
    distil_steps=620,
    rival_steps=60,
    rival_problems=32,
    rival_samples=12,
    rival_lr=4e-4,
    student_per_cell=120,
    per_cell=80,
)
SMALL = QuickstartScale(
    model="tiny",
    sft_steps=30,
    sft_rows=8,
    sft_hard=0.2,
    sft_plain=0.35,
    think=0.5,
    grpo_steps=3,
    grpo_problems=8,
    grpo_samples=4,
    grpo_hard=0.5,
    grpo_plain=0.2,
    lr=3e-4,
    student="tiny-student",
    student_able_steps=15,
    student_able_think=0.4,
    student_base_steps=5,
    student_think=0.07,
    student_hard=0.3,
    distil_problems=24,
    distil_steps=10,
    distil_keep="all",
    rival_steps=3,
    rival_problems=8,
    rival_samples=4,
    rival_lr=3e-4,
    student_per_cell=4,
    per_cell=4,
)
SCALES = {"full": FULL, "small": SMALL}
