"""One schema: what is unknown or mistyped is refused, by file, key and what was expected."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.scale import NoiseMode
from fedsea_mq.protocol.payload import WireDtype
from fedsea_mq.settings import NOISE_OFF, NoiseSettings, Settings


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "site.yaml"


def refusal(file: Path | None, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        Settings.load(file, overrides)
    return str(caught.value)


def test_every_key_has_a_default() -> None:
    assert Settings.load() == Settings()


def test_a_file_changes_what_it_names_and_nothing_else(file: Path) -> None:
    file.write_text("trunk:\n  lease_s: 5\nnoise:\n  mode: std\n")
    loaded = Settings.load(file)
    assert loaded.trunk.lease_s == 5.0
    assert loaded.noise.mode is NoiseMode.STD
    assert loaded == Settings().replace(trunk={"lease_s": 5}, noise={"mode": "std"})


@pytest.mark.parametrize("text", ["", "# nothing but a comment\n"])
def test_an_empty_file_is_all_defaults(file: Path, text: str) -> None:
    file.write_text(text)
    assert Settings.load(file) == Settings()


def test_overrides_win_over_the_file_and_the_last_over_the_first(file: Path) -> None:
    file.write_text("model:\n  head_blocks: 2\n")
    loaded = Settings.load(file, ["model.head_blocks=3", "model.head_blocks=4"])
    assert loaded.model.head_blocks == 4


@pytest.mark.parametrize("spelling", ["off", "'off'", '"off"'])
def test_off_is_a_word(file: Path, spelling: str) -> None:
    file.write_text(f"noise:\n  mode: {spelling}\n")
    assert Settings.load(file).noise.mode is NoiseMode.OFF
    assert Settings.load(None, [f"noise.mode={spelling}"]).noise.mode is NoiseMode.OFF


def test_what_is_written_is_what_is_loaded(file: Path) -> None:
    written = Settings.load(
        None, ["noise.mode=off", "client.wire_dtype=int8", "trunk.name=trunk-7", "model.threads=4"]
    )
    written.write(file)
    assert Settings.load(file) == written
    assert Settings.load(file).client.wire_dtype is WireDtype.INT8


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("trunk:\n  leases: 5\n", "unknown key trunk.leases"),
        ("trunks:\n  lease_s: 5\n", "unknown key trunks"),
        ("trunk:\n  lease_s: soon\n", "trunk.lease_s: expected a valid number"),
        ("trunk:\n  lease_s: 0\n", "trunk.lease_s: expected greater than 0, found 0"),
        ("model:\n  head_blocks: 1.5\n", "model.head_blocks: expected a valid integer"),
        ("model:\n  device: tpu\n", "model.device: String should match"),
        ("model:\n  dtype: fp64\n", "'fp32', 'bf16' or 'fp16', found 'fp64'"),
        ("model:\n  weights: int4\n", "model.weights: expected 'auto' or 'int8'"),
        (
            "model:\n  weights: int8\n  device: cuda\n",
            "int8 weights and KV cache are for device cpu",
        ),
        ("model:\n  kv_cache: int8\n  device: cuda:1\n", "are for device cpu only"),
        ("model:\n  kv_cache: int8\n  dtype: fp16\n", "are for dtype fp32 or bf16"),
        ("noise:\n  mode: loud\n", "'relative', 'std', 'mean_abs' or 'off', found 'loud'"),
        ("noise:\n  scale: .nan\n", "noise.scale"),
        ("noise:\n  clip: 0\n", "noise.clip: expected greater than 0, found 0"),
        ("noise:\n  mode: off\n  clip: 1\n", "mode off leaves the states as they are"),
        ("noise:\n  mode: off\n  shape: a.safetensors\n", "set clip and shape to null"),
        ("broker:\n  clients: localhost\n", "broker.clients: String should match"),
        ("broker:\n  nodes: tcp://127.0.0.1\n", "broker.nodes: expected tcp://ADDRESS:PORT"),
        ("broker:\n  nodes: tcp://127.0.0.1:99999\n", "a port up to 65535 or *, found 'tcp:"),
        (f"broker:\n  nodes: tcp://127.0.0.1:{'9' * 5000}\n", "a port up to 65535 or *, found"),
        ("broker:\n  nodes: tcp://:5\n", "expected tcp://ADDRESS:PORT"),
        ('broker:\n  nodes: "tcp://127.0.0.1:5\\n"\n', "broker.nodes"),
        ("broker:\n  timeout_ms: 1500\n", "timeout_ms must be at least twice heartbeat_ms"),
        ("ray:\n  min_nodes: 5\n", "min_nodes must not be above max_nodes"),
        ("trunk: 5\n", "trunk: expected"),
        ("1: 2\n", "1: Keys should be strings"),
        ("- trunk\n", "expected sections with keys, found list"),
        ("just words", "expected sections with keys, found str"),
        ("trunk:\n  lease_s: [\n", "not YAML at line"),
        ("trunk: !!python/object:os.system {}\n", "not YAML"),
    ],
)
def test_a_refusal_names_the_file_the_key_and_what_was_expected(
    file: Path, text: str, said: str
) -> None:
    file.write_text(text)
    message = refusal(file)
    assert str(file) in message
    assert said in message


def test_every_wrong_key_is_named_at_once(file: Path) -> None:
    file.write_text("trunk:\n  leases: 5\nmodel:\n  threads: none\n")
    message = refusal(file)
    assert "trunk.leases" in message
    assert "model.threads" in message


def test_given_no_such_file_or_no_text_then_the_file_is_named(file: Path) -> None:
    assert f"{file}: cannot be read" in refusal(file)
    file.write_bytes(b"\xff\xfe\x00\x80")
    assert f"{file}: not UTF-8 text" in refusal(file)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("trunk.lease_s", "override 'trunk.lease_s': expected section.key=value"),
        ("lease_s=5", "expected section.key=value"),
        ("=", "expected section.key=value"),
        ("trunk.lease_s=soon", "trunk.lease_s: expected a valid number"),
        ("trunk.leases=5", "unknown key trunk.leases"),
        ("trunk.lease_s=[", "override trunk.lease_s: the value is not YAML"),
        ("model.head_blocks=-1", "model.head_blocks: expected greater than or equal to 0"),
    ],
)
def test_a_wrong_override_is_named(override: str, said: str) -> None:
    assert said in refusal(None, override)


def test_an_override_in_what_is_no_section_is_named(file: Path) -> None:
    file.write_text("trunk: 5\n")
    said = refusal(file, "trunk.lease_s=5")
    assert said == "override trunk.lease_s: trunk is not a section with keys"


def test_an_override_of_a_wrong_file_still_names_the_file(file: Path) -> None:
    file.write_text("trunk:\n  leases: 5\n")
    assert f"{file} with overrides: unknown key trunk.leases" in refusal(file, "model.threads=2")


def test_a_section_whose_keys_are_all_commented_out_is_all_defaults(file: Path) -> None:
    file.write_text("trunk:\n  # lease_s: 5\n")
    assert Settings.load(file) == Settings()
    assert Settings.load(file, ["trunk.lease_s=5"]).trunk.lease_s == 5.0


def test_a_commands_own_defaults_yield_to_the_file_and_to_overrides(file: Path) -> None:
    file.write_text("trunk:\n  lease_s: 5\nmodel:\n")
    own = ["trunk.lease_s=7", "trunk.max_sessions=9", "model.threads=3", "model.dtype=bf16"]
    loaded = Settings.load(file, ["model.threads=4"], own)
    assert (loaded.trunk.lease_s, loaded.trunk.max_sessions) == (5.0, 9)
    assert (loaded.model.threads, loaded.model.dtype) == (4, "bf16")


def test_settings_do_not_change_once_made() -> None:
    with pytest.raises(ValidationError):
        Settings().trunk.lease_s = 5.0  # type: ignore[misc]


def test_a_replacement_is_checked_like_a_file() -> None:
    with pytest.raises(ConfigError, match=r"trunk\.lease_s"):
        Settings().replace(trunk={"lease_s": -1})


@pytest.mark.parametrize("config", sorted(Path("configs").glob("*.yaml")), ids=lambda p: p.name)
def test_every_config_that_is_shipped_loads(config: Path) -> None:
    assert isinstance(Settings.load(config), Settings)


@pytest.mark.parametrize("endpoint", ["tcp://10.0.0.7:7710", "tcp://127.0.0.1:*"])
def test_a_node_listens_where_clients_can_be_sent(endpoint: str) -> None:
    assert Settings.load(None, [f"trunk.direct={endpoint}"]).trunk.direct == endpoint


@pytest.mark.parametrize(
    "endpoint", ["tcp://0.0.0.0:7710", "tcp://node-3:7710", "ipc:///tmp/door", "tcp://10.0.0.7"]
)
def test_a_node_cannot_offer_what_is_not_the_address_of_one_machine(endpoint: str) -> None:
    assert "trunk.direct" in refusal(None, f"trunk.direct={endpoint}")


def test_noise_is_switched_off_with_all_that_goes_with_it() -> None:
    settings = Settings.load(None, ["noise.clip=1.5", "noise.shape=shape.safetensors"])
    assert settings.noise.shape == Path("shape.safetensors")
    assert settings.replace(noise=NOISE_OFF).noise == NoiseSettings(mode=NoiseMode.OFF)


def test_metrics_are_shown_on_a_network_only_where_that_is_asked_for() -> None:
    for host in ("0.0.0.0", "192.0.2.10", "::"):
        with pytest.raises(ConfigError, match=r"set metrics\.off_loopback"):
            Settings.load(None, [f"metrics.host='{host}'"])
        asked = Settings.load(None, [f"metrics.host='{host}'", "metrics.off_loopback=true"])
        assert asked.metrics.host == host
    assert Settings.load(None, ["metrics.host='::1'"]).metrics.port is None
    with pytest.raises(ConfigError, match=r"metrics\.host"):
        Settings.load(None, ["metrics.host=localhost"])


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "ftp://a", "http://", "http://a b"])
def test_a_collector_is_named_by_an_http_url(endpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"telemetry\.otlp_endpoint"):
        Settings.load(None, [f"telemetry.otlp_endpoint='{endpoint}'"])
