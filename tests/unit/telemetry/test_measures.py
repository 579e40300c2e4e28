"""The list of metrics: by Prometheus's conventions, and few series whatever happens."""

from __future__ import annotations

import re

import pytest

from fedsea_mq.telemetry.measures import ALL, Kind, Measure


def test_each_name_stands_once() -> None:
    names = [measure.name for measure in ALL]
    assert len(names) == len(set(names)) > 30


@pytest.mark.parametrize("measure", ALL, ids=lambda measure: str(measure.name))
def test_names_and_labels_are_by_the_conventions(measure: Measure) -> None:
    assert re.fullmatch("fedsea_[a-z_]+", measure.name)
    assert measure.name.endswith("_total") == (measure.kind is Kind.COUNTER)
    assert not re.search("_(ms|mb|kb|count|sum|bucket)(_|$)", measure.name)
    assert measure.help.endswith(".")
    assert list(measure.buckets) == sorted(set(measure.buckets))
    assert bool(measure.buckets) == (measure.kind is Kind.HISTOGRAM)
    # Never a session, a client, a key, a trace: these have no end.
    assert set(measure.labels) <= {
        *("version", "protocol", "kind", "direction", "code", "outcome", "verdict", "fate")
    }
