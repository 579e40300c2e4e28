"""The names that requests may ask for: the model, and each of the client's adapters."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from fedsea_mq.settings import Settings
from nodes.client import ClientNode
from nodes.gateway.errors import RequestRefused


class Models:
    """The base model under the last part of its path, adapters under their own names."""

    def __init__(self, client: ClientNode, settings: Settings) -> None:
        path = settings.model.path
        self.base = Path(path).resolve().name if Path(path).is_dir() else path
        self._adapters: dict[str, str | None] = {self.base: None}
        self._adapters |= {name: name for name in client.model.adapters}
        cut = settings.model
        self._facts = {
            "fingerprint": client.model.fingerprint,
            "cut": {"head_blocks": cut.head_blocks, "tail_blocks": cut.tail_blocks},
            "sigma": client.noise_std,
            "max_model_len": client.model.max_positions,
        }
        self._created = int(time.time())

    @property
    def names(self) -> list[str]:
        """All of them, the base model first."""
        return list(self._adapters)

    def adapter(self, model: str) -> str | None:
        """What a session of this model runs with. Raises `RequestRefused` for an unknown name."""
        if model not in self._adapters:
            known = ", ".join(self._adapters)
            raise RequestRefused(404, f"no such model; there are: {known}", "model_not_found")
        return self._adapters[model]

    def described(self, model: str) -> dict[str, Any]:
        """One of them, with what the client knows of its part. Raises `RequestRefused`."""
        adapter = self.adapter(model)
        return {
            "id": model,
            "object": "model",
            "created": self._created,
            "owned_by": "fedsea",
            "parent": None if adapter is None else self.base,
            **self._facts,
        }

    def listed(self) -> dict[str, Any]:
        """All, as `GET /v1/models` tells them."""
        return {"object": "list", "data": [self.described(name) for name in self._adapters]}
