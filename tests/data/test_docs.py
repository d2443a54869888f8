"""The code of docs/data.md runs."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from PIL import Image

from fastgan import data


def test_code_of_the_page(tmp_path, monkeypatch):
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    monkeypatch.chdir(tmp_path)
    domains = [
        f"datasets/{name}/{part}"
        for name in ("horse2zebra", "emoji")
        for part in ("trainA", "trainB", "testA", "testB")
    ]
    for folder in (*domains, "photos"):
        Path(folder).mkdir(parents=True)
        Image.new("RGB", (32, 24), "red").save(Path(folder) / "1.png")
    names = {"generator": torch.Generator()}
    exec(blocks[0], names)
    assert names["train"][0]["A"].shape == (3, 256, 256)
    assert names["photos"][0].shape == (3, 384, 512)
    calls = []
    monkeypatch.setattr(data, "make_emoji_dataset", lambda *args, **options: calls.append((args, options)))
    exec(blocks[1], names)
    assert calls == [(("datasets/emoji",), {"size": 64})]
    named = set(re.findall(r"`([a-zA-Z0-9_]+)\(", page)) - {"for_testing"}
    assert named <= set(data.__all__), named - set(data.__all__)
