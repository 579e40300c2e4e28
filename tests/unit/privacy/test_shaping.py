"""Shaped noise: which files are taken, what covariance comes out, and where the loss is spared."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fedsea_mq.errors import ConfigError
from fedsea_mq.privacy.attacks.public_model import PublicModel
from fedsea_mq.privacy.noise import NoiseSource, noise_source
from fedsea_mq.privacy.noise_shape import NoiseShape, write_shape
from fedsea_mq.privacy.shaping import output_gradients, shaped_root
from fedsea_mq.settings import ModelSettings, NoiseSettings
from tests.unit.model.split import unsplit

HIDDEN = 8
KEY = bytes(range(32))


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "shape.safetensors"


class TestFile:
    @pytest.mark.parametrize(
        ("tensors", "said"),
        [
            ({"roots": torch.eye(HIDDEN)}, "named root"),
            ({"root": torch.eye(HIDDEN), "other": torch.eye(HIDDEN)}, "one tensor"),
            ({"root": torch.eye(HIDDEN + 1)}, r"expected float32 \[8, 8\], found float32 \[9, 9\]"),
            ({"root": torch.eye(HIDDEN).half()}, "found float16"),
            ({"root": torch.eye(HIDDEN) * 1.01}, "within 1 %, is 1.02"),
            ({"root": torch.full((HIDDEN, HIDDEN), float("nan"))}, "within 1 %"),
            ({"root": torch.eye(HIDDEN) / 0.0}, "within 1 %"),
        ],
    )
    def test_what_is_not_a_shape_is_refused(
        self, file: Path, tensors: dict[str, torch.Tensor], said: str
    ) -> None:
        save_file(tensors, file)
        with pytest.raises(ConfigError, match=said) as refused:
            NoiseShape.load(file, HIDDEN)
        assert str(file) in str(refused.value)

    def test_nor_is_another_file_or_none(self, file: Path) -> None:
        with pytest.raises(ConfigError, match="cannot be read"):
            NoiseShape.load(file, HIDDEN)
        file.write_bytes(b"not tensors")
        with pytest.raises(ConfigError, match="not a safetensors file"):
            NoiseShape.load(file, HIDDEN)
        with pytest.raises(ConfigError, match="mean over directions"):
            write_shape(file, 2 * torch.eye(HIDDEN))

    def test_what_is_written_is_read_and_used(self, file: Path) -> None:
        root = shaped_root(drawn(50, HIDDEN), 0.1)
        write_shape(file, root)
        source = noise_source(NoiseSettings(scale=0.5, shape=file), 2.0, HIDDEN, "model")
        assert source.std == 1.0
        assert source.shape is not None
        assert torch.equal(source.shape.root, root)


def sent(root: torch.Tensor | None, digest: str, count: int = 1) -> torch.Tensor:
    shape = None if root is None else NoiseShape(root, digest)
    source = NoiseSource(2.0, "model", lambda size: KEY[:size], shape=shape)
    return source.add(torch.zeros(count, HIDDEN), source.chain().extend(0, range(count)))


def test_the_noise_has_the_covariance_of_the_root() -> None:
    root = shaped_root(drawn(50, HIDDEN) * torch.arange(1, HIDDEN + 1), 0.1)
    lopsided = root @ torch.linalg.qr(drawn(HIDDEN, HIDDEN))[0]
    noise = sent(lopsided, "a", 20_000).double()
    expected = 4 * lopsided.double().T @ lopsided.double()
    assert torch.allclose(noise.T @ noise / 20_000, expected, atol=0.04 * float(expected.max()))
    assert float(noise.square().mean()) == pytest.approx(4.0, rel=0.03)


def test_another_shape_has_noise_of_its_own() -> None:
    plain, one, other = (
        sent(root, name)
        for root, name in [(None, ""), (torch.eye(HIDDEN), "a"), (torch.eye(HIDDEN), "b")]
    )
    assert not torch.isclose(plain, one).any()
    assert not torch.isclose(one, other).any()


class TestRoot:
    def test_it_is_the_root_of_the_inverse(self) -> None:
        gradients = drawn(100, HIDDEN) @ drawn(HIDDEN, HIDDEN, seed=1)
        root = shaped_root(gradients, 0.3).double()
        fisher = gradients.double().T @ gradients.double() / 100
        fisher *= HIDDEN / fisher.trace()
        inverse = torch.linalg.inv(fisher + 0.3 * torch.eye(HIDDEN))
        assert torch.allclose(root @ root, inverse * HIDDEN / inverse.trace(), atol=1e-5)
        assert torch.allclose(root, root.T, atol=1e-6)

    def test_a_direction_that_moves_the_loss_gets_less(self) -> None:
        gradients = torch.zeros(4, HIDDEN)
        gradients[:, 3] = 5.0
        variances = shaped_root(gradients, 0.5).square().diagonal()
        assert float(variances[3]) == pytest.approx(float(variances[0]) * 0.5 / (HIDDEN + 0.5))
        assert float(variances.sum()) == pytest.approx(HIDDEN)

    def test_a_large_ridge_makes_it_isotropic(self) -> None:
        assert torch.allclose(shaped_root(drawn(9, HIDDEN), 1e6), torch.eye(HIDDEN), atol=1e-4)

    @pytest.mark.parametrize(
        ("gradients", "ridge", "said"),
        [
            (torch.ones(2, HIDDEN), 0.0, "ridge"),
            (torch.ones(2, HIDDEN), float("nan"), "ridge"),
            (torch.ones(HIDDEN), 1.0, "samples, hidden"),
            (torch.ones(0, HIDDEN), 1.0, "samples, hidden"),
            (torch.zeros(2, HIDDEN), 1.0, "all zero"),
            (torch.full((2, HIDDEN), float("inf")), 1.0, "not finite"),
            (torch.full((2, HIDDEN), float("nan")), 1.0, "not finite"),
        ],
    )
    def test_what_gives_none_is_refused(
        self, gradients: torch.Tensor, ridge: float, said: str
    ) -> None:
        with pytest.raises(ConfigError, match=said):
            shaped_root(gradients, ridge)


class TestGradients:
    def test_they_are_transformers_own(self, tiny_llama: Path) -> None:
        whole = unsplit(tiny_llama)
        model = PublicModel.load(ModelSettings(path=str(tiny_llama)))
        texts = [[5, 6, 7, 8, 9], [4], [10, 11, 12]]
        expected = []
        for tokens in (texts[0], texts[2]):
            ids = torch.tensor([tokens])
            said = whole(ids, labels=ids, output_hidden_states=True)
            # Of the first block: what leaves a head of one.
            (gradient,) = torch.autograd.grad(said.loss * (len(tokens) - 1), said.hidden_states[1])
            expected.append(gradient[0, :-1])
        found = output_gradients(model, texts)
        torch.testing.assert_close(found, torch.cat(expected), rtol=1e-3, atol=1e-6)
        assert not found.requires_grad

    def test_a_text_of_nothing_to_predict_is_refused(self, tiny_llama: Path) -> None:
        model = PublicModel.load(ModelSettings(path=str(tiny_llama)))
        with pytest.raises(ConfigError, match="two tokens"):
            output_gradients(model, [[5], []])
