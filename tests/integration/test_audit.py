"""The audit attacks what a trunk node received through the real protocol, from real processes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy

from fedsea_mq.cli.audit.grid import ISOTROPIC, PAPER, Grid, audit, audit_beside
from fedsea_mq.cli.audit.live import live_system
from fedsea_mq.cli.audit.live_training import captured_training
from fedsea_mq.cli.audit.page import page
from fedsea_mq.cli.audit.plots import plot_audit
from fedsea_mq.cli.audit.report import recommended, report
from fedsea_mq.cli.audit.victims import Victim
from fedsea_mq.model.packed_attention import PackedLayout
from fedsea_mq.privacy.attacks.labels import recover_labels
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.audited import finding
from fedsea_mq.settings import NoiseSettings, Settings
from fedsea_mq.tasks.encoding import Encoded

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
    assert told["recommended"]["utility"] == max(row["utility"] for row in rows)
    chosen = recommended(rows)
    assert chosen is not None
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
