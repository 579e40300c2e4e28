"""How commands write JSON."""

from __future__ import annotations

import json
import math

from fedsea_mq.cli.output import json_text


def test_json_has_no_number_that_is_none() -> None:
    text = json_text({"a": [math.inf, (math.nan, 1.5)], "b": {"c": -math.inf}, "d": "NaN"})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(text, parse_constant=refuse)
    assert read == {"a": [None, [None, 1.5]], "b": {"c": None}, "d": "NaN"}
