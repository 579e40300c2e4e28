"""The audit attacks what a trunk node received through the real protocol, from real processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.cli.audit.grid import (
    ISOTROPIC,
    OWN,
    PAPER,
    Grid,
    audit,
    audit_beside,
    cells_of,
    learned,
)
from fedsea_mq.cli.audit.kept import KeptFindings
from fedsea_mq.cli.audit.live import live_system
from fedsea_mq.cli.audit.live_training import captured_training
from fedsea_mq.cli.audit.page import page
from fedsea_mq.cli.audit.plots import plot_audit
from fedsea_mq.cli.audit.report import UNSAID, recommended, report, strongest
from fedsea_mq.cli.audit.victims import Victim, marked
from fedsea_mq.cli.score import Asked
from fedsea_mq.errors import ConfigError, IllegalCut, TaskDataError
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.labels import recover_labels
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.audited import finding
from fedsea_mq.privacy.noise_shape import write_shape
from fedsea_mq.privacy.scale import NoiseMode
from fedsea_mq.settings import NoiseSettings, Settings
from fedsea_mq.tasks.encoding import Encoded
from fedsea_mq.tasks.registry import find
from fedsea_mq.tasks.task import Wanted

QUIET = Settings().replace(log={"level": "warning"})
OFF = QUIET.replace(noise={"mode": "off"})
SMALL = Grid(((1, 1),), (0.0,), 1, 4, 1, 0, ("embedded/summary",))


async def test_what_is_captured_is_what_the_client_sent_and_the_trunk_computed() -> None:
    model = PublicModel.load(OFF.model)
    tokens = tuple(
        model.checkpoint.tokenizer("Kewyn is a weaver. She lives in Marshmoor.")["input_ids"]
    )
    victim = Victim(tokens, ())
    async with live_system(OFF) as system:
        (clean,), _ = await system.capture(system.settings, [victim], 4)
        noisy = system.settings.replace(noise={"mode": "std", "scale": 2.0})
        (first, again), drawn = await system.capture(noisy, [victim, victim], 4)
        (elsewhere,), _ = await system.capture(noisy, [victim], 4)
    assert drawn.std == 2.0
    assert clean.tokens[: len(tokens)] == tokens
    assert len(clean.tokens) == clean.seen.received.shape[0] == len(tokens) + 3
    states = model.states(clean.tokens)
    torch.testing.assert_close(clean.seen.received, states, rtol=1e-3, atol=1e-2)
    answered = model.answers(clean.seen.outputs).argmax(dim=-1).tolist()
    assert answered[len(tokens) - 1 : -1] == list(clean.tokens[len(tokens) :])
    # One client node sends a text's states with the same noise, another with its own.
    count = len(tokens)
    assert torch.equal(first.seen.received[:count], again.seen.received[:count])
    noise = first.seen.received[:count] - states[:count]
    assert float(noise.std()) == pytest.approx(2.0, rel=0.05)
    other = elsewhere.seen.received[:count] - states[:count]
    both = torch.corrcoef(torch.stack((noise.flatten(), other.flatten())))
    assert abs(float(both[0, 1])) < 5 / noise.numel() ** 0.5


async def test_guesses_that_nothing_came_of_are_not_taken_for_tokens() -> None:
    guessing = OFF.replace(client={"speculation": "lookup"})
    asked = Asked.of(find("embedded/conversation"), Wanted(count=3, seed=1000))
    victims = list(marked(asked, PublicModel.load(OFF.model).checkpoint, 1000))
    async with live_system(guessing) as system:
        captured, _ = await system.capture(system.settings, victims, 12)
    for one in captured:
        assert len(one.tokens) == one.seen.received.shape[0] == one.seen.outputs.shape[0]


async def test_a_cut_that_is_illegal_is_told_before_any_other_is_audited(tmp_path: Path) -> None:
    with pytest.raises(IllegalCut):
        _ = [found async for found in audit(QUIET, replace(SMALL, cuts=((1, 1), (9, 9))), tmp_path)]
    assert not list(tmp_path.iterdir())


def _notes(file: Path, count: int) -> str:
    lines = [{"prompt": f"Note {number}.", "answer": "yes"} for number in range(count)]
    file.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    return f"jsonl:{file}"


def test_of_a_single_file_the_attacker_has_the_lines_that_are_not_attacked(tmp_path: Path) -> None:
    task = find(_notes(tmp_path / "notes.jsonl", 5))
    grid = replace(SMALL, victims=3, shadow=9, tasks=(task.name,))
    assert len(learned(grid, task).examples) == 2
    with pytest.raises(TaskDataError, match="5 texts are attacked"):
        learned(replace(grid, victims=5), task)


def test_clip_and_shape_of_the_settings_are_a_defence_of_their_own() -> None:
    model = PublicModel.load(OFF.model)
    own = NoiseSettings(mode=NoiseMode.MEAN_ABS, clip=model.head_rms() * 16)
    grid = replace(SMALL, scales=(0.0, 0.5))
    tried = grid.settings((1, 1), model, Path("shape"), own)
    clips = {one.defence: one.noise["clip"] for one in tried}
    assert clips == {ISOTROPIC: None, PAPER: None, OWN: pytest.approx(1.0)}
    assert len(tried) == cells_of(grid, own)


async def test_a_shape_of_the_settings_is_read_and_never_written(tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    shaped = QUIET.replace(noise={"shape": file})
    with pytest.raises(ConfigError, match="cannot be read"):
        _ = [found async for found in audit(shaped, replace(SMALL, scales=(0.5,)), None)]
    assert not file.exists()
    write_shape(file, torch.eye(256))
    content = file.read_bytes()
    rows = [
        row
        async for found in audit(shaped, replace(SMALL, scales=(0.5,)), tmp_path)
        for row in found
    ]
    assert {row["defence"] for row in rows} == {ISOTROPIC, PAPER, OWN}
    assert file.read_bytes() == content


def test_a_damaged_finding_is_named(tmp_path: Path) -> None:
    kept = KeptFindings(tmp_path)
    kept.add(QUIET, "of", [1])
    assert kept.find(QUIET, "of") == [1]
    (file,) = tmp_path.iterdir()
    file.write_text("[1")
    with pytest.raises(ConfigError, match="damaged"):
        kept.find(QUIET, "of")


async def test_what_is_captured_of_training_is_what_was_sent_and_its_loss_s_gradient() -> None:
    model = PublicModel.load(OFF.model)
    examples = [Encoded((5, 90, 41, 7), (300, 12)), Encoded((8, 8), (77, 640, 3))]
    steps = await captured_training(OFF.replace(training={"batch_size": 2}), examples, 2)
    assert [step.after for step in steps] == [0, 1]
    for step in steps:
        assert sorted(one.ids for one in step.examples) == sorted(one.ids for one in examples)
    first, labels = steps[0], []
    for seen, example in zip(first.seen, first.examples, strict=True):
        states = model.states(example.ids)
        torch.testing.assert_close(seen.received, states, rtol=1e-3, atol=1e-2)
        outputs = seen.outputs.clone().requires_grad_()
        tail = model.tail
        normed = tail.norm(tail.run.sequences(outputs, PackedLayout((len(example.ids),))))
        rows = tail.lm_head(normed)[len(example.prompt) - 1 : -1].float()
        # A mean over the answers of both.
        loss = cross_entropy(rows, torch.tensor(example.answer), reduction="sum") / 5
        (gradient,) = torch.autograd.grad(loss, outputs)
        largest = float(gradient.abs().max())
        torch.testing.assert_close(seen.gradient, gradient, rtol=1e-2, atol=1e-3 * largest)
        labels.append(example.answer)
    assert [found.tokens for found in recover_labels(model, first.seen)] == labels


async def test_a_whole_audit_reports_what_was_recovered_and_is_not_done_twice(
    tmp_path: Path,
) -> None:
    rows = [row async for found in audit(QUIET, SMALL, tmp_path) for row in found]
    assert {row["defence"] for row in rows} == {ISOTROPIC, PAPER}
    named = {(row["attack"], row["sigma"]): row for row in rows}
    beam = named["vocabulary matching, beam", 0.0]
    assert beam["token_recovery"] == beam["secrets"] == beam["exact_prompts"] == 1.0
    assert named["public tail on outputs", 0.0]["answer_recovery"] == 1.0
    assert all(row["random_baseline"] < 0.1 for row in rows)
    assert all(row["membership_auc"] == 1.0 for row in rows)
    assert beam["agreement"] == 1.0
    assert beam["perplexity"] == pytest.approx(beam["perplexity_noise_free"], rel=1e-3)
    paper = next(row for row in rows if row["defence"] == PAPER)
    assert paper["perplexity"] > paper["perplexity_noise_free"] == beam["perplexity_noise_free"]
    small = replace(SMALL, trained=2, trained_steps=3, gradient_noises=(0.0,))
    beside = await audit_beside(QUIET, small, tmp_path)
    trained = {(row["attack"], row["after_steps"]): row for row in beside["training"]}
    labels, both = trained["labels from gradients", 0], trained["both", 0]
    assert labels["label_recovery"] == both["label_recovery"] == 1.0
    forward = trained["inputs from states", 0]["token_recovery"]
    assert labels["token_recovery"] < 0.5 < forward <= both["token_recovery"]
    # The number that ends each answer is not the model's to guess.
    assert trained["public tail on outputs", 0]["label_recovery"] < 0.9
    assert trained["labels from gradients", 2]["label_recovery"] > 0.9
    assert all(row["random_baseline"] < 0.1 for row in beside["training"])
    assert beside["lengths"]["bits"] <= beside["lengths_with_answers"]["bits"]
    told = report(rows, beside)
    assert [one["epsilon"] for one in told["epsilon"]] == [None, None]
    assert "noise.clip" in told["epsilon"][1]["because"]
    assert len(told["strongest"]) == 2
    # Noise may cost even the one text its answer: as useful as the paper's setting, at least.
    chosen = recommended(rows)
    assert chosen is not None
    assert told["recommended"]["utility"] == chosen["utility"] >= paper["utility"] - 0.01
    assert chosen["token_recovery"] == min(
        row["token_recovery"] for row in strongest(rows) if row["utility"] >= paper["utility"]
    )
    useless = [{**row, "utility": 0.0} for row in rows]
    assert recommended(useless) is None
    assert UNSAID in page(report(useless, beside), useless, [])
    plots = plot_audit(rows, tmp_path)
    assert all(file.stat().st_size > 10_000 for file in plots)
    assert told["recommended"]["risk"] in page(told, rows, ["recovery.png"])
    # Nothing is left to be done, so nothing is started.
    kept = [row async for found in audit(QUIET, SMALL, tmp_path) for row in found]
    assert kept == rows
    assert await audit_beside(QUIET, small, tmp_path) == beside

    (tmp_path / "report.json").write_text(json.dumps(told))
    noise = NoiseSettings(audit=tmp_path / "report.json")
    found = finding(noise, rows[0]["fingerprint"])
    assert found is not None
    assert found.share == max(row["token_recovery"] for row in told["strongest"])
    assert finding(noise, "another model") is None
