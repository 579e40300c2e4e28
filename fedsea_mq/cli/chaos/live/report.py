"""What an ordeal came to, for people."""

from __future__ import annotations

from statistics import median

from fedsea_mq.cli.chaos.live.ordeal import Endured
from fedsea_mq.cli.output import console, print_table


def show(endured: Endured) -> None:
    """Print it."""
    told = endured.as_json()
    print_table(
        f"{told['injected']} faults in processes, {told['lanes']} generations at a time; seconds",
        ("fault", "times", "median wait", "longest"),
        (
            (str(kind), len(waits), f"{median(waits):.2f}", f"{max(waits):.2f}")
            for kind, waits in endured.recoveries.items()
        ),
    )
    console.print(
        f"{told['generations']} generations, {told['tokens']} tokens: {told['wrong_tokens']} "
        f"wrong, {told['lost_tokens']} lost, {told['unfinished']} not finished; "
        f"{told['leaked_pages']} KV positions leaked. Wait of the slowest generation: p95 "
        f"{told['recovery_p95_s']:.2f} s, at a timeout of {told['timeout_s']:g} s."
    )
    for error in [*told["errors"], *told["unclean_ends"]]:
        console.print(f"  {error}", markup=False, soft_wrap=True)
