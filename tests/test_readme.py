"""Everything in the README runs, and its figures are those of the committed result files."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import report

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)


def test_python_blocks_run_in_order() -> None:
    assert len(blocks("python")) >= 4
    namespace: dict[str, Any] = {}
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    assert float(namespace["F"].wasserstein_1d(*map(namespace["torch"].tensor, ([0.0, 1, 3], [5.0, 6, 8])))) == 5
    assert str(namespace["fastgan"].fuse(namespace["generator"])).startswith("fused 0")  # the block fused it already


def test_figures_come_from_result_files() -> None:
    assert report.update_pages(check=True) == 0


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in re.findall(r"(?:`|^)make (\w+)", README, flags=re.MULTILINE):
        assert re.search(rf"^{command}:", makefile, flags=re.MULTILINE), command


@pytest.mark.parametrize(
    "line",
    [line for block in blocks("bash") for line in block.splitlines() if line.startswith("fastgan ")],
    ids=lambda line: "-".join(line.split()[1:3]),
)
def test_commands_parse(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    from fastgan import cli

    words = shlex.split(line, comments=True)[1:]
    with pytest.raises(SystemExit) as end:
        cli.main([*words, "--help"])
    assert end.value.code == 0
    printed = capsys.readouterr().out
    for flag in (word for word in words if word.startswith("--")):
        assert flag in printed
