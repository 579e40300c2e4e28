"""Three silos fine-tune one model together, each a process with text and a key of its own.

    .venv/bin/python examples/three_silos.py --out silos

Broker, trunk node, aggregator and three training clients are processes, as they would be on as many
machines: each has a folder with its settings and keys, and no other reads in it. Traffic is
encrypted and every party known by its key, and the aggregator learns the sum of the silos' updates
only (secure aggregation). What comes out is in the folders: `trunk`, `north`, `east` and `south`
each have their part of the adapter. A minute or two on two cores.
"""

import argparse
import asyncio
import json
import shutil
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path

from fedsea_mq.security.identity import Party
from fedsea_mq.security.keys import read_public, write_pair
from fedsea_mq.security.trust import TrustFolder
from fedsea_mq.settings import Settings

CONFIG = Path(__file__).parents[1] / "configs" / "finetune-silos.yaml"
SILOS = ("north", "east", "south")
PARTIES = {
    "trunk": Party.TRUNK,
    "aggregator": Party.AGGREGATOR,
    **dict.fromkeys(SILOS, Party.TRAINER),
}
MODULES = {"broker": "broker", "trunk": "nodes.trunk", "aggregator": "nodes.aggregator"}
# What each silo knows and the others do not.
THINGS = {"north": "seven kites", "east": "a tin of salt", "south": "two mules"}
PEOPLE = ("Orla", "Pim", "Quill", "Rosa", "Sten", "Tove", "Ulf", "Vera")


@dataclass(frozen=True)
class Run:
    """The folders of all parties, and what they have in common."""

    out: Path
    settings: Settings

    @classmethod
    def prepare(cls, out: Path, rounds: int, steps: int) -> "Run":
        """Make keys and text, and have the broker trust each party as what it is."""
        short = [f"federation.rounds={rounds}", f"federation.local_steps={steps}"]
        common = ["training.batch_size=4", "training.learning_rate=1e-3", "log.level=warning"]
        free = ["broker.clients=tcp://127.0.0.1:*", "broker.nodes=tcp://127.0.0.1:*"]
        for name in ("broker", *PARTIES):
            write_pair(out / name, "fedsea")
        trust = TrustFolder(out / "broker" / "trust")
        for name, party in PARTIES.items():
            shutil.copy(out / "broker" / "fedsea.pub", out / name / "broker.pub")
            trust.add(party, name, read_public(out / name / "fedsea.pub"))
        for name in SILOS:
            write_text(out / name / "text.jsonl", THINGS[name])
        return cls(out, Settings.load(CONFIG, [*short, *common, *free]))

    def at(self, broker: dict[str, str]) -> "Run":
        """The same with the addresses that the broker got."""
        ends = {"clients": broker["clients"], "nodes": broker["nodes"]}
        return Run(self.out, self.settings.replace(broker=ends))

    async def start(self, name: str) -> Process:
        """Start a party with the settings that are its own."""
        folder = self.out / name
        security = {"key": str(folder / "fedsea.key")}
        if name == "broker":
            security["trust"] = str(folder / "trust")
        else:
            security["broker_key"] = str(folder / "broker.pub")
        training = {"out": str(folder / "runs")}
        if name in SILOS:
            training |= {"member": name, "task": f"jsonl:{folder / 'text.jsonl'}"}
        file = folder / "settings.yaml"
        self.settings.replace(security=security, training=training).write(file)
        module = MODULES.get(name, "nodes.trainer")
        return await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", module, "--config", str(file)), stdout=PIPE
        )


def write_text(file: Path, thing: str) -> None:
    """A silo's own examples: prompts with their answers."""
    lines = [
        {"prompt": f"{name} asked what was left. It was", "answer": f"{thing}, said {other}."}
        for name in PEOPLE
        for other in PEOPLE
        if name != other
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


async def first_line(process: Process) -> dict[str, str]:
    """What a party says when it is ready."""
    assert process.stdout is not None
    line = await process.stdout.readline()
    if not line:
        raise SystemExit(f"a party ended with status {await process.wait()}; it says why above")
    said: dict[str, str] = json.loads(line)
    return said


async def follow(name: str, process: Process) -> None:
    """Show a silo's losses until it ends."""
    assert process.stdout is not None
    async for line in process.stdout:
        said = json.loads(line)
        if said.get("event") == "step":
            print(f"{name:>6}  round {said['round']}  step {said['step']}  loss {said['loss']:.3f}")
    if await process.wait():
        raise SystemExit(f"{name} ended with status {process.returncode}")


async def main(out: Path, rounds: int, steps: int) -> None:
    run = Run.prepare(out, rounds, steps)
    started: list[Process] = []
    try:
        started.append(await run.start("broker"))
        run = run.at(await first_line(started[-1]))
        for name in ("trunk", "aggregator"):
            started.append(await run.start(name))
            await first_line(started[-1])
        silos = {name: await run.start(name) for name in SILOS}
        started.extend(silos.values())
        # They end by themselves when the rounds are over.
        async with asyncio.TaskGroup() as group:
            for name, process in silos.items():
                group.create_task(follow(name, process))
    finally:
        for process in reversed(started):
            if process.returncode is None:
                process.terminate()
            await process.communicate()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Three silos fine-tune together")
    parser.add_argument("--out", type=Path, default=Path("silos"), help="a new folder")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=10, help="of each silo in a round")
    given = parser.parse_args()
    asyncio.run(main(given.out, given.rounds, given.steps))
    for part in sorted(given.out.glob("*/runs/*/**/adapter_model.safetensors")):
        print(part.parent)
