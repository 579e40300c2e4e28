"""Same token after same prefix: same bytes. Two noisy copies of one state can be averaged."""

from __future__ import annotations

from itertools import count

from hypothesis import given, settings
from hypothesis import strategies as st

from fedsea_mq.protocol.positions import SentLog

ROW_SIZES = (4, 2)
TOKENS = st.integers(0, 2)
WRITES = st.lists(st.tuples(st.integers(0, 9), st.lists(TOKENS, max_size=8)), max_size=30)


@settings(max_examples=200, deadline=None, database=None)
@given(WRITES)
def test_bytes_change_exactly_where_the_prefix_does(writes: list[tuple[int, list[int]]]) -> None:
    log, draws = SentLog(ROW_SIZES), count()
    for at, tokens in writes:
        start = min(at, len(log.tokens))
        before_tokens, before = list(log.tokens), log.payload(0, len(log.tokens))
        rows = [next(draws) for _ in tokens]
        fresh = [b"".join(row.to_bytes(size, "little") for row in rows) for size in ROW_SIZES]

        sent = log.record(start, tokens, fresh)

        same = start
        while same < start + len(tokens) and before_tokens[same : same + 1] == [
            tokens[same - start]
        ]:
            same += 1
        for size, old, new, drawn in zip(ROW_SIZES, before, sent, fresh, strict=True):
            kept = (same - start) * size
            assert new == old[start * size : same * size] + drawn[kept:]
        whole = same == start + len(tokens)
        assert log.tokens == (
            before_tokens if whole else before_tokens[:same] + tokens[same - start :]
        )
