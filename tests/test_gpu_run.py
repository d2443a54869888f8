"""The GPU run bounds and packs its parts, whatever they do; its commands name tests and options that exist."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu_run


@pytest.fixture(autouse=True)
def _apart(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    monkeypatch.setattr(gpu_run, "GRACE", 5.0)
    monkeypatch.setattr(gpu_run, "STAMP", tmp_path_factory.mktemp("build") / "stamp")


def packed(archive: Path) -> dict[str, bytes]:
    with tarfile.open(archive) as opened:
        files = {member.name: opened.extractfile(member) for member in opened.getmembers()}
        return {name: file.read() for name, file in files.items() if file is not None}


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Python code, or a reason, for each part's name."""
    commands: dict[str, Any] = {}

    def command(part: str, work: Path, limit: float, dry: bool) -> Any:
        code = commands[part]
        return code.removeprefix("skip: ") if code.startswith("skip: ") else [sys.executable, "-c", code, str(work)]

    monkeypatch.setattr(gpu_run, "_command", command)
    monkeypatch.setattr(gpu_run, "_architecture", lambda: "90")
    return commands


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["gpu_run.py", *words])
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        return gpu_run.main()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_every_part_is_packed_and_a_failure_is_told(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts["build"] = "print('built')"
    parts["test"] = "import sys; open(sys.argv[1] + '/test.xml', 'w').write('<x/>'); print('y' * 2**20); sys.exit(3)"
    parts["sweep"] = "skip: no such tool"
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setenv("PYTHONPATH", "/carried")
    parts["bench"] = (
        "import os; print({k: os.environ.get(k) for k in ('PYTHONPATH', 'TRITON_INTERPRET', 'FASTGAN_COMMIT')})"
    )
    assert run(monkeypatch, str(tmp_path), "--parts", "build,test,sweep,bench", "--commit", "abc") == 1
    files = packed(tmp_path / "results.tar.gz")
    assert [path.name for path in tmp_path.iterdir()] == ["results.tar.gz"]
    summary = json.loads(files["summary.json"])
    assert summary["commit"] == "abc"
    assert summary["build"]["code"] == 0
    assert summary["test"]["code"] == 3
    assert summary["sweep"] == {"skipped": "no such tool"}
    assert files["build.log"] == b"built\n"
    assert files["test.xml"] == b"<x/>"
    assert len(files["test.log"]) <= gpu_run.LOG_TAIL + 10
    seen = eval(files["bench.log"])
    assert seen == {
        "PYTHONPATH": f"{gpu_run.ROOT}{os.pathsep}/carried", "TRITON_INTERPRET": None, "FASTGAN_COMMIT": "abc",
    }  # fmt: skip


def test_a_part_that_hangs_is_ended_with_its_children(tmp_path: Path) -> None:
    stubborn = "import signal as s, time; s.signal(s.SIGINT, s.SIG_IGN); print('up', flush=True); time.sleep(600)"
    code = (
        "import subprocess, sys, time\n"
        f"child = subprocess.Popen([sys.executable, '-c', {stubborn!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print(child.pid, flush=True); time.sleep(600)"
    )
    result = gpu_run._run("sweep", [sys.executable, "-c", code], tmp_path, 4.0, "abc", lambda: None)
    assert result == {"ended": "stopped after 4 s", "code": 124}
    state = Path(f"/proc/{int((tmp_path / 'sweep.log').read_text().split()[0])}/status")
    for _ in range(100):  # the kernel takes a moment
        if not state.exists() or re.search(r"State:\s+[ZX]", state.read_text()):
            break
        time.sleep(0.1)
    else:
        pytest.fail("the part's child is still running")


def test_a_run_that_is_killed_leaves_what_its_part_had_found(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from benchmarks import gpu_run\n"
        "gpu_run.PACK_EVERY, gpu_run._architecture = 0.2, lambda: '90'\n"
        'found = \'import sys, time; open(sys.argv[1] + "/sweep.jsonl", "w").write("{}"); time.sleep(600)\'\n'
        "gpu_run._command = lambda part, work, *_: [sys.executable, '-c', found, str(work)]\n"
        "sys.argv = ['gpu_run.py', sys.argv[1], '--parts', 'sweep']; gpu_run.main()"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=gpu_run.ROOT, start_new_session=True)
    try:
        for _ in range(600):
            files = packed(tmp_path / "results.tar.gz") if (tmp_path / "results.tar.gz").exists() else {}
            if files.get("sweep.jsonl"):
                break
            time.sleep(0.1)
    finally:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        for pid in (process.pid, *map(int, children)):
            os.kill(pid, signal.SIGKILL)
        process.wait()
    files = packed(tmp_path / "results.tar.gz")
    assert files["sweep.jsonl"] == b"{}"
    assert json.loads(files["summary.json"])["sweep"] == {"ended": "was still running"}


@pytest.mark.parametrize("hangs", [False, True])
def test_an_interrupted_test_part_leaves_what_it_has(
    hangs: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In test.xml; if it hangs, in a kernel say, then in what it had printed."""
    begun = tmp_path / "begun"
    (tmp_path / "test_slow.py").write_text(
        "import pytest, signal, time\npytestmark = pytest.mark.gpu\ndef test_first(): pass\n"
        f"def test_second():\n    if {hangs}:\n        signal.signal(signal.SIGINT, signal.SIG_IGN)\n"
        f"    open({str(begun)!r}, 'w').close()\n    time.sleep(600)\n"
    )
    with monkeypatch.context() as without_xdist:
        without_xdist.setattr(gpu_run.importlib.util, "find_spec", lambda name: None)
        command = gpu_run._command("test", tmp_path, 60, False)
    assert isinstance(command, list)
    words = [word for word in command if not word.startswith("tests/")]
    monkeypatch.setattr(gpu_run, "PACK_EVERY", 0.2)
    monkeypatch.setattr(gpu_run, "GRACE", 1.0 if hangs else 60.0)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")

    def pack() -> None:
        if begun.exists():
            raise KeyboardInterrupt

    words += ["-c", "/dev/null", str(tmp_path)]
    assert gpu_run._run("test", words, tmp_path, 300.0, "abc", pack) == {"ended": "interrupted"}
    assert "test_slow.py::test_first PASSED" in (tmp_path / "test.log").read_text()
    assert (tmp_path / "test.xml").exists() != hangs
    assert hangs or "test_first" in (tmp_path / "test.xml").read_text()


def test_an_interrupted_run_leaves_what_it_had(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts["build"] = "print('built')"
    parts["test"] = "import os, signal, time; os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    parts["sweep"] = "print('never')"
    assert run(monkeypatch, str(tmp_path), "--parts", "build,test,sweep") == 130
    files = packed(tmp_path / "results.tar.gz")
    summary = json.loads(files["summary.json"])
    assert summary["test"] == {"ended": "interrupted"}
    assert files["build.log"] == b"built\n"
    assert "sweep" not in summary


def test_parts_of_a_run_in_the_background_can_be_interrupted(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        parts["build"] = "import signal; print(signal.getsignal(signal.SIGINT).__name__)"
        assert run(monkeypatch, str(tmp_path), "--parts", "build") == 0
    finally:
        signal.signal(signal.SIGINT, before)
    assert packed(tmp_path / "results.tar.gz")["build.log"] == b"default_int_handler\n"


def test_parts_end_within_the_whole_time(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts["build"] = "print('never')"
    assert run(monkeypatch, str(tmp_path), "--parts", "build", "--seconds", "5") == 0
    assert json.loads(packed(tmp_path / "results.tar.gz")["summary.json"])["build"] == {"skipped": "no time left"}


def test_the_calls_are_all_parts_in_their_order() -> None:
    named = [part for parts in gpu_run.CALLS.values() for part in parts.split(",")]
    assert list(dict.fromkeys(named)) == list(gpu_run.LIMITS)
    assert all(parts.startswith("build,") for parts in gpu_run.CALLS.values())


def test_nothing_begins_without_a_gpu(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parts["build"] = "print('built')"
    monkeypatch.setattr(gpu_run, "_architecture", lambda: None)
    monkeypatch.setattr(gpu_run, "_why_no_gpu", lambda: "RuntimeError: no driver")
    assert run(monkeypatch, str(tmp_path / "out"), "--call", "1") == 2
    assert "No GPU, nothing done" in (said := capsys.readouterr().out)
    assert "RuntimeError: no driver" in said
    assert not (tmp_path / "out").exists()
    assert run(monkeypatch, str(tmp_path / "out"), "--parts", "build", "--dry-run") == 0


def test_what_was_built_of_the_same_sources_is_used_again(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gpu_run, "_architecture", lambda: None)
    assert not gpu_run._built()
    parts["build"] = "raise SystemExit(1)"
    assert run(monkeypatch, str(tmp_path), "--parts", "build", "--dry-run") == 1
    assert not gpu_run._built()
    parts["build"] = "print('built')"
    assert run(monkeypatch, str(tmp_path), "--parts", "build", "--dry-run") == 0
    assert gpu_run._built()
    monkeypatch.setattr(gpu_run.subprocess, "run", lambda *_, **__: subprocess.CompletedProcess([], 1))
    assert not gpu_run._built()  # nor what cannot be imported
    monkeypatch.undo()
    monkeypatch.setattr(gpu_run, "_architecture", lambda: "80")
    assert not gpu_run._built()


def test_a_part_belongs_to_the_run_s_session(tmp_path: Path) -> None:
    code = "import os; print(os.getsid(0), os.getpgid(0) == os.getpid())"
    assert gpu_run._run("sweep", [sys.executable, "-c", code], tmp_path, 60.0, "abc", lambda: None)["code"] == 0
    assert (tmp_path / "sweep.log").read_text() == f"{os.getsid(0)} True\n"


def test_the_archive_stays_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_run, "ARCHIVE", 1000)
    work = tmp_path / "work"
    work.mkdir()
    for name, size in (("bench.json", 600), ("sweep.jsonl", 300), ("plot.png", 5000)):
        (work / name).write_bytes(bytes(size))
    gpu_run._pack(work, {"commit": "abc"}, tmp_path / "results.tar.gz")
    files = packed(tmp_path / "results.tar.gz")
    assert files.keys() == {"bench.json", "sweep.jsonl", "summary.json"}
    assert json.loads(files["summary.json"]) == {"commit": "abc", "left out, too large": ["plot.png"]}


def test_the_table_at_the_end_says_what_became_of_each_part(tmp_path: Path) -> None:
    logs = {
        "test": "x\nFAILED tests/test_a.py::test_b - wrong\n= 1 failed, 2 passed, 3 warnings in 61.20s (0:01:01) =\n",
        "memcheck": "=== 3 passed in 5.1s ===\n========= ERROR SUMMARY: 0 errors\n",
        "sweep": "working\nbuilding a table\n\n",
    }
    for part, text in logs.items():
        (tmp_path / f"{part}.log").write_text(text)
    results = {
        "test": {"code": 1, "seconds": 70.5},
        "memcheck": {"code": 0, "seconds": 9.0},
        "racecheck": {"skipped": "compute-sanitizer was not found"},
        "sweep": {"ended": "stopped after 9 s", "code": 124},
    }
    text = gpu_run._table(results, tmp_path)
    assert "FAILED tests/test_a.py::test_b - wrong" in text
    lines = {line.split()[0]: line for line in text[text.index("--- parts") :].splitlines()[1:]}
    assert "FAILED" in lines["test"]
    assert lines["test"].endswith("70.5  1 failed, 2 passed, 3 warnings in 61.20s (0:01:01)")
    assert lines["memcheck"].endswith("3 passed in 5.1s; ERROR SUMMARY: 0 errors")
    assert lines["racecheck"].endswith("compute-sanitizer was not found")
    assert "stopped after 9 s" in lines["sweep"]
    assert lines["sweep"].endswith("building a table")


def test_the_sanitizers_run_tests_that_exist() -> None:
    command = gpu_run._command("test", Path("work"), 60, False)
    assert isinstance(command, list)
    files = [word for word in command if word.endswith(".py")]
    assert "tests/kernels/test_wasserstein_cuda.py" in files
    kernels = [file for file in files if file.startswith("tests/kernels/")]
    for chosen in (gpu_run.MEMCHECK, gpu_run.RACECHECK):
        words = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--collect-only", *kernels, "-k", chosen]
        found = subprocess.run(words, cwd=gpu_run.ROOT, capture_output=True, text=True).stdout
        assert "test_triton_instance_norm.py::test_real_sizes" in found
        assert "test_wasserstein_cuda.py::test_device" in found
