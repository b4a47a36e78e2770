"""Schemas of the fine-tuning API's requests, in OpenAI's form."""

from __future__ import annotations

from collections.abc import Set
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Auto = Literal["auto"]
Epochs = Auto | Annotated[int, Field(ge=1, le=50)]
BatchSize = Auto | Annotated[int, Field(ge=1, le=256)]
WITHOUT_EFFECT = frozenset({"eval_interval", "eval_samples", "reasoning_effort"})
Multiplier = Auto | Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)]


class TuneSchema(BaseModel):
    """Base class of the schemas. Unknown fields raise an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ExpiresAfter(TuneSchema):
    """When an uploaded file expires, in OpenAI's form: `seconds` after its creation."""

    anchor: Literal["created_at"]
    seconds: Annotated[int, Field(ge=3600, le=2_592_000, strict=False)]  # a form has texts


class UploadFields(TuneSchema):
    """The fields of `POST /v1/files` beside the file."""

    purpose: Literal["fine-tune"]
    expires_after: ExpiresAfter | None = None


class Hyperparameters(TuneSchema):
    """Hyperparameters of a supervised job. `auto` lets the server choose."""

    n_epochs: Epochs = "auto"
    batch_size: BatchSize = "auto"
    learning_rate_multiplier: Multiplier = "auto"

    def given(self, names: Set[str]) -> list[str]:
        """Return which of the hyperparameters `names` differ from their defaults."""
        return [name for name in self.model_dump(exclude_defaults=True) if name in names]


class DPOHyperparameters(Hyperparameters):
    """Hyperparameters of a preference job. `beta`: weight of the distance from the base model (2305.18290, eq. 7)."""

    beta: Auto | Annotated[float, Field(gt=0, le=2, allow_inf_nan=False)] = "auto"


class ReinforcementHyperparameters(Hyperparameters):
    """Hyperparameters of a reinforcement job. `compute_multiplier`: factor of the number of samples for each prompt. Those in
    `WITHOUT_EFFECT` are accepted, and an event of the job names them."""

    compute_multiplier: Multiplier = "auto"
    eval_interval: Auto | Annotated[int, Field(ge=1)] = "auto"
    eval_samples: Auto | Annotated[int, Field(ge=1)] = "auto"
    reasoning_effort: Literal["default", "low", "medium", "high"] = "default"


def _refuse_format(value: dict[str, Any] | None) -> None:
    if value and value.get("type") != "text":
        raise ValueError("A format is not enforced in training. Ask for it in the prompt, and let the grader check it")


class SupervisedSettings(TuneSchema):
    """The settings of the method `supervised`."""

    hyperparameters: Hyperparameters = Hyperparameters()


class PreferenceSettings(TuneSchema):
    """The settings of the method `dpo`."""

    hyperparameters: DPOHyperparameters = DPOHyperparameters()


class ReinforcementSettings(TuneSchema):
    """The settings of the method `reinforcement`. `grader`: one of OpenAI's grader objects."""

    grader: dict[str, Any]
    response_format: Annotated[dict[str, Any] | None, AfterValidator(_refuse_format)] = None
    hyperparameters: ReinforcementHyperparameters = ReinforcementHyperparameters()


class Method(TuneSchema):
    """A method of fine-tuning and its settings, in the field of the method's name."""

    type: Literal["supervised", "dpo", "reinforcement"]
    supervised: SupervisedSettings | None = None
    dpo: PreferenceSettings | None = None
    reinforcement: ReinforcementSettings | None = None

    @model_validator(mode="after")
    def _check_settings(self) -> Method:
        given = {name for name in ("supervised", "dpo", "reinforcement") if getattr(self, name) is not None}
        if given - {self.type}:
            raise ValueError(f"The type is '{self.type}', but the settings of '{min(given - {self.type})}' are given")
        if self.type == "reinforcement" and self.reinforcement is None:
            raise ValueError("The method 'reinforcement' needs `reinforcement.grader`")
        return self

    @property
    def hyperparameters(self) -> Hyperparameters:
        """The hyperparameters of the method, or the defaults."""
        if self.type == "dpo":
            return (self.dpo or PreferenceSettings()).hyperparameters
        return (self.reinforcement or self.supervised or SupervisedSettings()).hyperparameters


def _refuse_integrations(value: list[Any] | None) -> None:
    if value:
        raise ValueError("Integrations are not offered. Leave it out")


class JobRequest(TuneSchema):
    """Body of `POST /v1/fine_tuning/jobs`. The deprecated field `hyperparameters` is that of the method `supervised`."""

    model: Annotated[str, Field(min_length=1, max_length=256)]
    training_file: Annotated[str, Field(max_length=64)]
    validation_file: Annotated[str, Field(max_length=64)] | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-zA-Z0-9_.-]+$")] | None = None
    seed: Annotated[int, Field(ge=0, le=2**31 - 1)] | None = None
    metadata: (
        Annotated[
            dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]], Field(max_length=16)
        ]
        | None
    ) = None
    method: Method | None = None
    hyperparameters: Hyperparameters | None = None
    integrations: Annotated[list[Any] | None, AfterValidator(_refuse_integrations)] = None

    @field_validator("hyperparameters")
    @classmethod
    def _check_method(cls, value: Hyperparameters | None, info: ValidationInfo) -> Hyperparameters | None:
        if value is not None and info.data.get("method") is not None:
            raise ValueError("`hyperparameters` and `method` are both given. Leave `hyperparameters` out")
        return value

    def chosen_method(self) -> Method:
        """Return the method of the job, which is `supervised` by default."""
        settings = SupervisedSettings(hyperparameters=self.hyperparameters or Hyperparameters())
        return self.method or Method(type="supervised", supervised=settings)
