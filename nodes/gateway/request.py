"""What both kinds of request may say, and what is made of it before anything is asked."""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fedsea_mq.model.sampling import SamplingSettings
from nodes.gateway.errors import RequestRefused, invalid

MAX_TOP_LOGPROBS: Final = 20
_MAX_STOPS: Final = 16
_MAX_STOP_CHARS: Final = 256

StopText = Annotated[str, Field(min_length=1, max_length=_MAX_STOP_CHARS)]


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Stops = Annotated[tuple[StopText, ...], BeforeValidator(_listed), Field(max_length=_MAX_STOPS)]
Penalty = Annotated[float, Field(ge=-2.0, le=2.0)]
NewTokens = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=-(2**63), lt=2**63)]


class Fields(BaseModel):
    """Strict about names, so that nothing which changes the answer is passed over in silence.

    A null is as good as not said.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        if not isinstance(fields, dict):
            return fields
        return {name: value for name, value in fields.items() if value is not None}


class StreamOptions(Fields):
    """What a stream holds beside the answer."""

    include_usage: bool = False
    include_obfuscation: Literal[False] = False


class GenerationRequest(Fields):
    """The fields that chats and completions share.

    `top_k`, `repetition_penalty` and `ignore_eos` are beyond OpenAI's; other servers have them.
    """

    model: str
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    n: Annotated[int, Field(ge=1)] = 1
    temperature: Annotated[float, Field(ge=0.0, le=2.0)] = 1.0
    top_p: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = 0
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    repetition_penalty: Annotated[float, Field(gt=0.0, le=10.0)] = 1.0
    ignore_eos: bool = False
    seed: Seed | None = None
    stop: Stops = ()
    # Of no consequence for the answer: who asks, and what a hosted service is to keep of it.
    user: Any = None
    metadata: Any = None
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    def sampling(self, max_new_tokens: int, number: int) -> SamplingSettings:
        """How the answer of this number is sampled; of several, each by a seed of its own."""
        return SamplingSettings(
            max_new_tokens=max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            repetition_penalty=self.repetition_penalty,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            stop=self.stop,
            ignore_eos=self.ignore_eos,
            seed=None if self.seed is None else self.seed + number,
        )


R = TypeVar("R", bound=GenerationRequest)


def parsed(kind: type[R], body: bytes) -> R:
    """A request as its fields say. Raises `RequestRefused`, which repeats nothing of the body."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
        raise _refused(first["type"], ".".join(map(str, first["loc"])), first["msg"]) from None


def _refused(kind: str, where: str, message: str) -> RequestRefused:
    if kind == "json_invalid":
        return invalid("the body is not JSON", code="not_json")
    if kind == "extra_forbidden":
        return invalid(f"{where} is not supported", where, "unsupported_parameter")
    return invalid(f"{where}: {message}" if where else message, where or None)
