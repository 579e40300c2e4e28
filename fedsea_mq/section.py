"""What the sections of a configuration have in common."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Seconds = Annotated[float, Field(gt=0, le=86_400)]


class Section(BaseModel):
    """Frozen, and no unknown key passes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
