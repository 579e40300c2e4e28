"""What Prometheus would read from an endpoint."""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


@dataclass(frozen=True)
class Scrape:
    """All samples of one process at one time."""

    samples: list[Sample]

    @classmethod
    async def of(cls, url: str) -> Scrape:
        async with httpx.AsyncClient() as http:
            answer = await http.get(url)
        answer.raise_for_status()
        families = text_string_to_metric_families(answer.text)
        return cls([sample for family in families for sample in family.samples])

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}

    def labels(self, label: str) -> set[str]:
        return {sample.labels[label] for sample in self.samples if label in sample.labels}

    def value(self, name: str, **labels: str) -> float:
        """The one sample with these labels."""
        (found,) = [
            sample.value
            for sample in self.samples
            if sample.name == name and labels.items() <= sample.labels.items()
        ]
        return float(found)
