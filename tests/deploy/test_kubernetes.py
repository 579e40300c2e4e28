"""The manifests: valid, and what they start finds its keys and settings and answers its probes."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from fedsea_mq.security.keys import write_pair
from fedsea_mq.settings import Settings
from tests.deploy.cluster import Pod, free_ports, of_kind, rendered, write_volume

needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)


@pytest.fixture(scope="module", params=["base", "overlays/gpu"])
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return rendered(request.param)


@needs_kubectl
def test_every_object_is_valid(objects: list[dict[str, Any]]) -> None:
    for one in objects:
        kubernetes_validate.validate(one, kubernetes_validate.latest_version(), strict=True)


@needs_kubectl
def test_every_settings_file_is_valid(objects: list[dict[str, Any]], tmp_path: Path) -> None:
    files = of_kind(objects, "ConfigMap")["data"]
    assert set(files) == {"broker.yaml", "trunk.yaml", "probe.yaml"}
    for name, text in files.items():
        (tmp_path / name).write_text(text)
        Settings.load(tmp_path / name)


@needs_kubectl
def test_a_trunk_node_has_longer_to_stop_than_to_drain(
    objects: list[dict[str, Any]], tmp_path: Path
) -> None:
    (tmp_path / "trunk.yaml").write_text(of_kind(objects, "ConfigMap")["data"]["trunk.yaml"])
    drain_s = Settings.load(tmp_path / "trunk.yaml").trunk.drain_s
    pod = of_kind(objects, "StatefulSet")["spec"]["template"]["spec"]
    assert pod["terminationGracePeriodSeconds"] > drain_s + 10


@needs_kubectl
def test_no_container_may_do_more_than_it_must(objects: list[dict[str, Any]]) -> None:
    for kind in ("Deployment", "StatefulSet"):
        pod = of_kind(objects, kind)["spec"]["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"]
        assert not pod["automountServiceAccountToken"]
        for container in (*pod["containers"], *pod["initContainers"]):
            confined = container["securityContext"]
            assert confined["readOnlyRootFilesystem"]
            assert not confined["allowPrivilegeEscalation"]
            assert confined["capabilities"] == {"drop": ["ALL"]}


@needs_kubectl
def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    (trunk,) = of_kind(rendered("overlays/gpu"), "StatefulSet")["spec"]["template"]["spec"][
        "containers"
    ]
    assert trunk["resources"]["limits"]["nvidia.com/gpu"] == 1


@pytest.mark.slow
@needs_kubectl
def test_the_containers_find_each_other_and_a_removed_key_is_refused(tmp_path: Path) -> None:
    """Given the base's pods as processes, then they are well, until the probe's key is removed."""
    base, ports = rendered("base"), free_ports()
    files = of_kind(base, "ConfigMap")["data"]
    for party in ("broker", "trunk", "probe"):
        write_pair(tmp_path / "pairs", f"{party}")

    def key(name: str) -> str:
        return (tmp_path / "pairs" / name).read_text()

    broker = Pod(of_kind(base, "Deployment")["spec"]["template"], tmp_path / "broker", ports)
    trunk = Pod(
        of_kind(base, "StatefulSet")["spec"]["template"],
        tmp_path / "trunk",
        ports,
        {"NODE": "fedsea-trunk-0"},
    )
    for pod in (broker, trunk):
        for folder in ("keys", "run/fedsea", "trust", "etc"):
            (pod.root / folder).mkdir(parents=True)
        settings = {name: pod.localized(text) for name, text in files.items()}
        write_volume(pod.root / "etc/fedsea", settings)
        write_volume(pod.root / "keys/probe", {"fedsea.key": key("probe.key")})
    write_volume(
        broker.root / "keys/broker",
        {"fedsea.key": key("broker.key"), "fedsea.pub": key("broker.pub")},
    )
    write_volume(
        trunk.root / "keys/trunk", {"fedsea.key": key("trunk.key"), "broker.pub": key("broker.pub")}
    )
    write_volume(broker.root / "trust/clients", {"probe.pub": key("probe.pub")})
    write_volume(broker.root / "trust/trunks", {"trunk.pub": key("trunk.pub")})
    try:
        broker.begin()
        assert broker.probe("livenessProbe") == 0
        trunk.begin()
        assert trunk.probe("readinessProbe") == 0
        write_volume(broker.root / "trust/clients", {})
        while trunk.probe("readinessProbe") == 0:
            time.sleep(0.2)
    finally:
        ended = [pod.end() for pod in (trunk, broker) if pod.processes]
    assert ended == [0, 0]
