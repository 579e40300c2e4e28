"""What a person sees while a run goes on."""

from __future__ import annotations

from dataclasses import dataclass

from rich.console import Group
from rich.table import Table
from rich.text import Text

from fedsea_mq.cli.train.record import MemberRecord, RunRecord
from fedsea_mq.settings import Settings

_COLUMNS = ("round", "step", "loss", "held out", "samples/s", "MB up", "MB down")


@dataclass(frozen=True, slots=True)
class RunView:
    """A table of the members under a line on the whole run."""

    settings: Settings
    record: RunRecord

    def __rich__(self) -> Group:
        """For rich."""
        return Group(Text(self._head(), style="bold"), self._table(), Text(self._foot(), "dim"))

    def _head(self) -> str:
        training, federation = self.settings.training, self.settings.federation
        done = min(self.record.open_round + 1, federation.rounds)
        secure = ", secure aggregation" if federation.secure else ""
        return f"{training.run}: {training.strategy}, round {done} of {federation.rounds}{secure}"

    def _table(self) -> Table:
        table = Table()
        table.add_column("member")
        for name in _COLUMNS:
            table.add_column(name, justify="right")
        for name, member in self.record.by_name():
            table.add_row(name, *self._cells(member))
        return table

    def _cells(self, member: MemberRecord) -> list[str]:
        newest = member.newest
        if newest is None:
            return ["-"] * len(_COLUMNS)
        held_out = member.held_out.get(max(member.held_out, default=0))
        return [
            str(newest.round + 1),
            f"{newest.step + 1}/{self.settings.federation.local_steps}",
            f"{newest.loss:.4f}",
            "-" if held_out is None else f"{held_out:.4f}",
            f"{newest.samples_per_s:.1f}",
            f"{member.total('bytes_up') / 1e6:.1f}",
            f"{member.total('bytes_down') / 1e6:.1f}",
        ]

    def _foot(self) -> str:
        record = self.record
        sigma = max((member.sigma for _, member in record.by_name()), default=0.0)
        said = [f"noise sigma {sigma:.4f}" if sigma else "no noise"]
        if record.repeated:
            said.append(f"{len(record.repeated)} attempts repeated")
        if record.restarts:
            said.append(f"{sum(record.restarts.values())} processes started again")
        if record.clipped:
            said.append(f"{len(record.clipped)} updates clipped")
        if record.turned_away:
            said.append(f"{len(record.turned_away)} updates turned away")
        return "; ".join(said)
