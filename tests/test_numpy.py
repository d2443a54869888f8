"""fastgan.numpy: NumPy in, NumPy out, no copies."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from scipy import stats

import fastgan.numpy as fnp


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_matches_scipy(dtype: type[np.floating]) -> None:
    rng = np.random.default_rng(0)
    x, y, a = rng.normal(size=(4, 30)).astype(dtype), rng.normal(size=20).astype(dtype), rng.random(30)
    value = fnp.wasserstein_1d(x, y, a)
    assert value.dtype == dtype
    assert value.shape == (4,)
    expected = [stats.wasserstein_distance(row.astype(float), y.astype(float), a) for row in x]
    np.testing.assert_allclose(value, expected, rtol=2 * float(np.finfo(dtype).eps) + 1e-12)
    assert isinstance(fnp.wasserstein_1d(x[0], y), np.floating)


def test_any_array_is_read_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    original = fnp._wasserstein_1d
    monkeypatch.setattr(fnp, "_wasserstein_1d", lambda *t, **k: seen.append(t) or original(*t, **k))
    x = np.random.default_rng(0).normal(size=(6, 50)).astype(np.float32)
    frozen = x.copy()
    frozen.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        expected = fnp.wasserstein_1d(x, x[:, ::2])
        assert np.array_equal(fnp.wasserstein_1d(frozen, x[:, ::2]), expected)
    for array, tensor in ((x, seen[0][0]), (x, seen[0][1]), (frozen, seen[1][0])):
        assert tensor.data_ptr() == array.__array_interface__["data"][0]
    assert np.array_equal(fnp.wasserstein_1d(x[:, ::-1], np.asfortranarray(x[:, ::2])), expected)
    assert np.array_equal(fnp.wasserstein_1d(x.astype(">f4"), x[:, ::2]), expected)


def test_integers_lists_and_masked_out_types() -> None:
    assert fnp.wasserstein_1d([0, 1, 3], [5, 6, 8]) == 5
    assert fnp.wasserstein_1d(np.array([0, 1]), [0, 1], [3, 1], [2, 2]) == 0.25
    assert fnp.wasserstein_1d([0, 1], [1, 2]).dtype == np.float64
    assert fnp.wasserstein_1d([True, False], [1, 2], p=2, root=False) == 1
    for bad in (np.array([1j]), np.array(["a"]), np.array([1], dtype=np.longdouble), np.array([None])):
        with pytest.raises(TypeError, match="x must hold"):
            fnp.wasserstein_1d(bad, [1.0])
    with pytest.raises(ValueError, match="at least one sample"):
        fnp.wasserstein_1d([], [1.0])
    with pytest.raises(ValueError, match="non-negative"):
        fnp.wasserstein_1d([1.0], [1.0], [-1.0])
    assert torch.is_grad_enabled()


def test_masked_samples_are_not_taken_for_samples() -> None:
    x, y = np.array([0.0, 1.0, 9.0]), np.array([1.0, 2.0])
    with pytest.raises(TypeError, match="x must not be masked"):
        fnp.wasserstein_1d(np.ma.masked_array(x, x > 5), y)
    assert fnp.wasserstein_1d(np.ma.masked_array(x[:2]), y) == 1.0


def test_orders_may_be_numbers_of_numpy() -> None:
    x, y = np.random.default_rng(0).normal(size=(2, 3, 5))
    for p in (np.int64(2), np.float32(2), np.float64(2)):
        assert np.array_equal(fnp.wasserstein_1d(x, y, p=p), fnp.wasserstein_1d(x, y, p=2.0))
