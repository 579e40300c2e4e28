"""What a process holds after the warm-up, and at the end."""

from __future__ import annotations

from fedsea_mq.cli.soak import Held, held_by
from fedsea_mq.load.samples import Sample

MB = 1_000_000


def sample(second: int, rss: dict[str, int], files: dict[str, int]) -> Sample:
    return Sample(float(second), 1, 1.0, 0.5, 1.0, 1, 1, rss, files)


def test_the_warm_up_does_not_count_and_single_peaks_do_not_either() -> None:
    def rss(second: int) -> int:
        warming = second < 15
        return (50 if warming else 200 if second in (20, 95) else 100) * MB

    samples = [sample(n, {"broker": rss(n)}, {"broker": 30 if n < 15 else 20}) for n in range(100)]
    held = held_by(samples)["broker"]
    assert held == Held(100 * MB, 100 * MB, 20, 20)
    assert held.is_flat


def test_growth_of_memory_or_of_open_files_is_not_flat() -> None:
    assert Held(100 * MB, 102 * MB, 20, 20).is_flat
    assert not Held(100 * MB, 103 * MB, 20, 20).is_flat
    assert not Held(100 * MB, 100 * MB, 20, 21).is_flat


def test_a_process_that_did_not_run_all_the_time_is_left_out() -> None:
    samples = [
        sample(n, {"broker": MB} | ({"load": MB} if n < 50 else {}), {"broker": 1, "load": 1})
        for n in range(100)
    ]
    assert list(held_by(samples)) == ["broker"]
