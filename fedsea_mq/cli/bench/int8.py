"""What int8 weights and an int8 KV cache are worth to the bare engine, beside bf16."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Final

from fedsea_mq.cli.bench.comparison import Comparison, Ratio, Repeat
from fedsea_mq.cli.bench.workbench import Workbench

_CONTEXTS: Final = (64, 512)
_SESSIONS: Final = 64
_STEPS: Final = 32
_PLAIN: Final = "bf16"
# What is int8 in each of them; the rest is bf16.
_WAYS: Final[dict[str, dict[str, str]]] = {
    "int8_weights": {"weights": "int8"},
    "int8_kv": {"kv_cache": "int8"},
    "int8": {"weights": "int8", "kv_cache": "int8"},
}
_SAYS: Final = {
    "int8_weights": "int8 weights",
    "int8_kv": "an int8 KV cache",
    "int8": "both in int8",
}


async def _repeat(bench: Workbench) -> Repeat:
    found: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        # All are loaded first, so that what is compared is measured in the same minute.
        engines = {
            name: await stack.enter_async_context(bench.model(**keys).alone())
            for name, keys in {_PLAIN: {}, **_WAYS}.items()
        }
        for context in _CONTEXTS:
            for name, engine in engines.items():
                found[f"{name}_ctx{context}"] = await engine.ask(
                    "step", batch=_SESSIONS, context=context, steps=_STEPS
                )
    ratios = {
        _named(way, context): found[f"{way}_ctx{context}"]["tokens_per_s"]
        / found[f"{_PLAIN}_ctx{context}"]["tokens_per_s"]
        for way in _WAYS
        for context in _CONTEXTS
    }
    return ratios, found


def _named(way: str, context: int) -> str:
    return f"{way}_{_SESSIONS}_ctx{context}"


INT8: Final = Comparison(
    "int8",
    tuple(
        Ratio(
            _named(way, context),
            f"tokens/s of the bare engine with {_SAYS[way]} over bf16's; {_SESSIONS} sessions, "
            f"context {context}",
        )
        for way in _WAYS
        for context in _CONTEXTS
    ),
    _repeat,
)
