"""The table of names: options, defaults, requirements, errors."""

from __future__ import annotations

import inspect

import pytest
import torch

from fastgan import objectives
from fastgan.objectives import OBJECTIVES, CriticSchedule


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_row_is_whole(name):
    objective = objectives.make(name)
    doc = inspect.getdoc(type(objective))
    assert "et al." in doc or "Qi 2017" in doc
    assert "equation" in doc or "section" in doc or "algorithm" in doc
    assert objective.defaults.source
    assert objective.defaults.lr_generator > 0
    assert objectives.options(name)["joint"] is False
    for key in objective.toy:
        assert key in objectives.options(name)


def test_unknown_names_and_options_are_refused():
    with pytest.raises(ValueError, match=r"name must be one of gan, .*sliced, got 'wgan_gp'"):
        objectives.make("wgan_gp")
    with pytest.raises(ValueError, match=r"'wgan' has no option 'weight'; it has joint"):
        objectives.make("wgan", weight=10.0)
    with pytest.raises(ValueError, match=r"'wgan-gp' has no option 'real_label'"):
        objectives.make("wgan-gp", real_label=0.9)
    with pytest.raises(ValueError, match=r"'fgan-kl' has no option 'divergence'"):
        objectives.make("fgan-kl", divergence="js")
    with pytest.raises(ValueError, match=r"real_label must be in \(0.5, 1\], got 0.0"):
        objectives.make("gan", real_label=0.0)
    with pytest.raises(ValueError, match="margin must be positive"):
        objectives.make("ebgan", margin=0.0)
    with pytest.raises(TypeError, match="weight must be a number, got '10'"):
        objectives.make("wgan-gp", weight="10")
    with pytest.raises(TypeError, match="feature_matching must be True or False, got 'yes'"):
        objectives.make("gan", feature_matching="yes")


@pytest.mark.parametrize("name", [name for name in OBJECTIVES if name != "sliced"])
def test_critics_must_return_scores(name):
    """Those of several scales return a list, those of feature matching a tuple."""
    critic, x = torch.nn.LSTM(2, 2), torch.randn(4, 2)
    with pytest.raises(TypeError, match="objectives: critic must return a Tensor of scores, got tuple"):
        objectives.make(name).critic_loss(critic, x, x)
    if name != "ebgan":
        with pytest.raises(TypeError, match="objectives: critic must return a Tensor of scores, got tuple"):
            objectives.make(name).generator_loss(critic, x, x)


def test_loss_sensitive_wants_pairs():
    with pytest.raises(ValueError, match=r"shapes must be equal, got \[4, 2\] and \[3, 2\]"):
        objectives.make("loss-sensitive").critic_loss(torch.nn.Linear(2, 1), torch.randn(4, 2), torch.randn(3, 2))


OUT_OF_RANGE = {
    "weight": -1.0, "grad_scale": 0.0, "consistency": -2.0, "margin": -0.1, "spread": -0.5, "pulling_away": -0.1,
    "real_weight": -1.0, "real_label": 0.5, "n_projections": 0, "p": 0.5,
}  # fmt: skip


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_number_has_its_range(name):
    """A value out of it, and NaN, are refused by name, with what was got."""
    for key, default in objectives.options(name).items():
        if type(default) in (int, float):
            for value in (OUT_OF_RANGE[key], float("nan")):
                with pytest.raises(ValueError, match=f"objectives: {key} must be .*, got {value}"):
                    objectives.make(name, **{key: value})


def test_directions_are_whole():
    with pytest.raises(TypeError, match=r"objectives: n_projections must be an integer, got 1\.5"):
        objectives.make("sliced", n_projections=1.5)


def test_published_defaults():
    """ALGORITHMS' numbers: a change of one of them is a change of the algorithm."""
    d = {name: objectives.make(name).defaults for name in OBJECTIVES}
    wgan = d["wgan"]
    assert (wgan.optimizer, wgan.lr_critic, wgan.lr_generator, wgan.clip, wgan.batch_size) == (
        "rmsprop",
        5e-5,
        5e-5,
        0.01,
        64,
    )
    for name in ("wgan-gp", "wgan-gp-one-sided", "ct-gan"):
        assert (d[name].lr_critic, d[name].betas, d[name].schedule.n, d[name].clip) == (1e-4, (0.0, 0.9), 5, None)
        assert objectives.options(name)["weight"] == 10.0
        assert objectives.make(name).toy == {"weight": 0.1}
        assert objectives.make(name).requires.independent
    assert objectives.options("ct-gan")["consistency"] == 2.0
    assert (d["sngan"].lr_critic, d["sngan"].betas, d["sngan"].schedule.n) == (2e-4, (0.0, 0.9), 5)
    assert objectives.make("sngan").requires.spectral_norm
    assert (d["dragan"].lr_critic, d["dragan"].betas, d["dragan"].batch_size) == (1e-4, (0.5, 0.9), 128)
    for name in ("ebgan", "fgan-kl", "fgan-gan", "gan"):
        assert (d[name].lr_critic, d[name].betas, d[name].batch_size) == (2e-4, (0.5, 0.999), 128)
    assert [name for name in OBJECTIVES if objectives.options(name).get("alternative")] == ["fgan-kl", "fgan-pearson"]
    clipped = [name for name in OBJECTIVES if objectives.make(name).settings("mlp", True).grad_clip == 1.0]
    assert clipped == ["fgan-kl", "fgan-reverse-kl", "fgan-hellinger"]
    assert (objectives.options("dragan")["weight"], objectives.options("dragan")["spread"]) == (10.0, 0.5)
    assert objectives.make("sliced").requires.output == "none"
    assert d["hinge"].lr_critic != d["hinge"].lr_generator


def test_schedule_of_wgan():
    """100 critic steps before each of the first 25 generator steps and every 500th, else 5."""
    schedule = objectives.make("wgan").defaults.schedule
    counts = [schedule(step) for step in range(1100)]
    assert counts[:25] == [100] * 25
    assert [step for step in range(25, 1100) if counts[step] == 100] == [500, 1000]
    assert set(counts) == {5, 100}
    assert [CriticSchedule(n=3)(step) for step in range(4)] == [3] * 4
