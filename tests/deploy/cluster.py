"""The manifests, and enough of what a kubelet does to run their containers as processes here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.ports import free_port

ROOT = Path(__file__).parents[2]
MANIFESTS = ROOT / "deploy" / "kubernetes"


def rendered(folder: str) -> list[dict[str, Any]]:
    """The objects that `kubectl apply -k` would send."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(MANIFESTS / folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [one for one in yaml.safe_load_all(done.stdout) if one is not None]


def of_kind(objects: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The only one of a kind."""
    (found,) = [one for one in objects if one["kind"] == kind]
    return found


def write_volume(folder: Path, files: dict[str, str]) -> None:
    """Files as a kubelet mounts a config map or secret: an open folder, and `..data` in it.

    Written again, the link changes from one version to the next at once.
    """
    folder.mkdir(exist_ok=True)
    folder.chmod(0o777)
    version = folder / f"..{len(list(folder.iterdir()))}"
    version.mkdir(mode=0o755)
    for name, text in files.items():
        (version / name).write_text(text)
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    draft = folder / "..data_new"
    draft.symlink_to(version.name)
    draft.replace(folder / "..data")


@dataclass
class Pod:
    """One pod of a template, whose volumes lie in a folder here."""

    template: dict[str, Any]
    root: Path
    ports: dict[str, int]
    environment: dict[str, str] = field(default_factory=dict)
    processes: list[subprocess.Popen[str]] = field(default_factory=list)

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.template["spec"]["containers"]
        return dict(only)

    def begin(self) -> None:
        """Run the init containers, start the container and wait for its first line."""
        for init in self.template["spec"]["initContainers"]:
            self.run([*init["command"], *init["args"]])
        arguments = ["fedsea", *self.container["args"]]
        process = subprocess.Popen(
            [self._here(word) for word in arguments],
            env=self._environment(), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        self.processes.append(process)
        assert process.stdout is not None
        assert "ready" in process.stdout.readline()

    def probe(self, name: str) -> int:
        """The exit status of a probe."""
        return self.run(self.container[name]["exec"]["command"], check=False)

    def run(self, command: list[str], *, check: bool = True) -> int:
        done = subprocess.run(
            [self._here(word) for word in command],
            env=self._environment(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done.returncode

    def end(self) -> int:
        """SIGTERM, and the exit status."""
        (process,) = self.processes
        process.terminate()
        process.communicate(timeout=60)
        return process.returncode

    def localized(self, settings: str) -> str:
        """Settings with places and ports of this machine in them."""
        here = re.sub(r"fedsea-broker:|0\.0\.0\.0:", "127.0.0.1:", self._here(settings))
        for named, real in self.ports.items():
            here = here.replace(f":{named}", f":{real}")
        return here

    def _here(self, text: str) -> str:
        for name, value in self.environment.items():
            text = text.replace(f"$({name})", value)
        return re.sub(r"(?<![\w.])/(keys|run/fedsea|trust|etc/fedsea)\b", rf"{self.root}/\1", text)

    def _environment(self) -> dict[str, str]:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        return {**os.environ, **self.environment, "PATH": path, "PYTHONPATH": str(ROOT)}


def free_ports() -> dict[str, int]:
    return {"7700": free_port(), "7701": free_port()}
