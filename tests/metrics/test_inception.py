"""FID and inception score: the figures with a network of our own, the errors without Inception's weights."""

from __future__ import annotations

import importlib
import math
import sys
import types
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastgan.metrics import MetricUnavailableError, frechet_inception_distance, inception_score
from fastgan.metrics import inception as module


class _Features(nn.Module):
    """Mean and a few weighted sums of the pixels, of known statistics."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.register_buffer("directions", torch.randn(3 * 6 * 6, 4, generator=generator) / 5)

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1:] == (3, 6, 6)
        return x.flatten(1) @ self.directions


def _batches(x):
    return [x[:7], x[7:]]


def test_fid_matches_its_formula():
    linalg = pytest.importorskip("scipy.linalg")
    real, fake = torch.rand(40, 3, 6, 6) * 2 - 1, torch.rand(30, 1, 6, 6) - 0.7
    features = _Features()
    value = frechet_inception_distance(_batches(real), _batches(fake), features=features)
    a, b = features(real).double().numpy(), features(fake.expand(-1, 3, -1, -1)).double().numpy()
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    root = linalg.sqrtm(covariances[0] @ covariances[1]).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(covariances[0] + covariances[1] - 2 * root)
    assert math.isclose(value, expected, rel_tol=1e-4)
    assert expected > 0.1
    assert abs(frechet_inception_distance(_batches(real), [real], features=features)) < 1e-4


def test_fid_of_fewer_images_than_features_is_exact():
    """And of features that lie close together, far from 0, as those of similar images do."""
    directions = torch.randn(108, 300, dtype=torch.float64)
    features = nn.Module()
    features.forward = lambda x: x.double().flatten(1) @ directions / 100 + 50
    real, fake = torch.rand(40, 3, 6, 6) * 2 - 1, torch.rand(30, 3, 6, 6) - 0.7
    a, b = features(real), features(fake)
    roots = [(x - x.mean(0)) / math.sqrt(len(x) - 1) for x in (a, b)]  # covariances are their squares
    shared = torch.linalg.svdvals(roots[0] @ roots[1].T).sum()
    expected = (a.mean(0) - b.mean(0)).square().sum() + sum(x.square().sum() for x in roots) - 2 * shared
    value = frechet_inception_distance(_batches(real), _batches(fake), features=features)
    assert math.isclose(value, float(expected), rel_tol=1e-6)


def test_inception_is_torch_fidelitys_own(tmp_path, monkeypatch):
    """Not torchmetrics' version of it, which scales images in another way; it gets them as they are, as bytes."""
    built = []

    class Extractor(nn.Module):
        def __init__(self, name, features_list, feature_extractor_weights_path=None):
            super().__init__()
            built.append((name, features_list, feature_extractor_weights_path))

        def forward(self, x):
            assert not self.training
            assert (x.dtype, x.shape[1:], x.min(), x.max()) == (torch.uint8, (3, 6, 6), 0, 255)
            return (x.flatten(1)[:, ::20].float(),)

    package, extractors = types.ModuleType("torch_fidelity"), types.ModuleType("feature_extractor_inceptionv3")
    extractors.FeatureExtractorInceptionV3 = Extractor
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "torch_fidelity", package)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", extractors)
    weights = tmp_path / "weights.pth"
    torch.save({"weight": torch.zeros(1)}, weights)
    real, fake = (torch.rand(8, 3, 6, 6) * 2 - 1 for _ in range(2))
    for images in (real, fake):
        images[:, 0, 0, 0], images[:, 0, 0, 1] = 1.2, -1
    value = frechet_inception_distance([real], [fake], weights=weights)
    assert built == [("inception-v3-compat", ["2048"], str(weights))]
    pixels = nn.Module()
    pixels.forward = lambda x: ((x.clamp(-1, 1) + 1) * 127.5).round().flatten(1)[:, ::20]
    assert math.isclose(value, frechet_inception_distance([real], [fake], features=pixels), rel_tol=1e-6)
    assert value > 1


@pytest.fixture
def extractors(monkeypatch):
    """torch-fidelity's own module of Inception. Its package imports torchvision, which Inception does not use and which
    may be built for another torch than is here."""
    if find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    for name in ("torchvision.datasets", "torchvision.transforms.functional", "torchvision.transforms", "torchvision"):
        part = types.ModuleType(name)
        part.__dict__.update(dict.fromkeys(("CIFAR10", "CIFAR100", "STL10"), object))
        monkeypatch.setitem(sys.modules, name, part)
    yield importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torch_fidelity"]:
        del sys.modules[name]  # what was made of the stand-ins


def test_weights_are_read_from_their_place(extractors, tmp_path, monkeypatch):
    """A file of random weights, as torch-fidelity's release has them, through the network itself."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    path = tmp_path / "hub" / "checkpoints" / extractors.URL_INCEPTION_V3.rpartition("/")[2]
    path.parent.mkdir(parents=True)
    torch.save({}, path)
    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(extractors.FeatureExtractorInceptionV3, "load_state_dict", lambda *_: None)
        inception = extractors.FeatureExtractorInceptionV3("random", ["logits_unbiased"], str(path))
    for name, value in inception.state_dict().items():
        if value.dim() == 4:
            nn.init.kaiming_normal_(inception.get_parameter(name))  # else nothing of the image arrives
    state = inception.state_dict()
    torch.save(state, path)
    images = torch.rand(3, 3, 20, 24) * 2 - 1
    logits = nn.Module()
    logits.forward = lambda x: inception(((x + 1) * 127.5).round().byte())[0]
    expected, _ = inception_score([images], splits=1, features=logits)
    assert expected > 1 + 1e-6
    assert math.isclose(inception_score([images], splits=1)[0], expected, rel_tol=1e-6)
    state.pop("fc.bias")
    torch.save(state, path)
    with pytest.raises(MetricUnavailableError, match=rf"{path.name}: holds other weights; expected http"):
        frechet_inception_distance([images], [images])


class _Logits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 50 * nn.functional.one_hot((x[:, 0, 0, 0] > 0).long(), 2).float()


def test_inception_score_of_two_sure_classes_is_two():
    x = torch.ones(4, 3, 6, 6)
    x[:2] = -1
    mean, deviation = inception_score([x], splits=1, features=_Logits())
    assert math.isclose(mean, 2, rel_tol=1e-5)
    assert deviation == 0
    assert math.isclose(inception_score([x.abs()], splits=1, features=_Logits())[0], 1, rel_tol=1e-5)
    assert math.isnan(inception_score([x * math.nan], splits=1, features=_Features())[0])


def test_inception_score_is_that_of_torchmetrics():
    metric = pytest.importorskip("torchmetrics.image.inception").InceptionScore(_Features(), splits=5)
    x = 9 * torch.rand(20, 3, 6, 6)
    metric.update(x)
    torch.manual_seed(0)
    mean, deviation = metric.compute()
    torch.manual_seed(0)
    found = inception_score(_batches(x), splits=5, features=_Features())
    assert math.isclose(found[0], float(mean), rel_tol=1e-5)
    assert math.isclose(found[1], float(deviation) * math.sqrt(4 / 5), rel_tol=1e-4)  # theirs is over splits - 1
    assert found[1] > 0.01


def test_too_few_images():
    one, two = [torch.zeros(1, 3, 6, 6)], [torch.zeros(2, 3, 6, 6)]
    with pytest.raises(ValueError, match="fake must hold at least two images, got 1"):
        frechet_inception_distance(two, one, features=_Features())
    with pytest.raises(ValueError, match="real must hold at least two images, got 0"):
        frechet_inception_distance([], two, features=_Features())
    with pytest.raises(ValueError, match="at least one image for each of 10 splits is needed, got 2"):
        inception_score(two, features=_Logits())


def test_images_that_are_no_batches_of_values_around_0():
    """A tensor in the place of batches, and bytes, which torchmetrics takes."""
    images = torch.rand(5, 3, 6, 6)
    for wrong, got in ((images, r"torch.float32 \[3, 6, 6\]"), ([images.byte()], r"torch.uint8 \[5, 3, 6, 6\]")):
        with pytest.raises(ValueError, match=r"batches \[N, C, H, W\] with values in \[−1, 1\], got " + got):
            frechet_inception_distance([images], wrong, features=_Features())


def test_missing_libraries_and_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    for score in (lambda: frechet_inception_distance([], []), lambda: inception_score([])):
        with pytest.raises(MetricUnavailableError, match=r"need torch-fidelity, .*pip install 'fastgan\[metrics\]'"):
            score()
    monkeypatch.setattr(module, "find_spec", lambda name: object())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MetricUnavailableError, match=rf"{tmp_path}.*{module.WEIGHTS}: no such file; .*github\.com"):
        inception_score([])
    bad = tmp_path / "bad.pth"
    bad.write_text("hello")
    with pytest.raises(MetricUnavailableError, match=r"bad\.pth: damaged, or not a file of weights"):
        frechet_inception_distance([], [], weights=bad)
    torch.save({"weight": torch.zeros(1)}, bad)
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):  # torchmetrics may have loaded both
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MetricUnavailableError, match="torch-fidelity cannot be imported"):
        frechet_inception_distance([], [], weights=bad)

    def unfit(name):
        raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(module.importlib, "import_module", unfit)
    with pytest.raises(MetricUnavailableError, match="torch-fidelity cannot be imported: operator torchvision::nms"):
        frechet_inception_distance([], [], weights=bad)
