"""Everything that needs a GPU, in one call that can be stopped at any time.

``python benchmarks/gpu_run.py OUT [--parts build,test,sanitize,sweep,bench] [--scale 1.0]``

Needs torch, Triton and pytest, nvcc, CMake, Ninja and pybind11; no network, and fastgan need not be installed. Each
part runs in a process of its own within its own time limit, and leaves OUT/<part>.log; OUT/summary.json says how each
ended and is rewritten after each. Parts:

    build     the extension in place, with FASTGAN_CUDA=1
    test      pytest -m gpu                                       -> OUT/test.xml
    sanitize  compute-sanitizer over one test of each regime, where the tool is found
    sweep     launch settings of the instance norm's kernels      -> OUT/sweep.jsonl
    bench     every benchmark against eager and torch.compile     -> OUT/bench.json and its report

Nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {"build": 300, "test": 300, "sanitize": 120, "sweep": 300, "bench": 600}  # seconds


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--parts", default=",".join(LIMITS), help="comma-separated, in the order to run")
    parser.add_argument("--scale", type=float, default=1.0, help="of every time limit")
    args = parser.parse_args()
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    parts = args.parts.split(",")
    if unknown := set(parts) - set(LIMITS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    summary: dict[str, object] = {"commit": _commit(), "python": sys.version.split()[0]}
    for part in parts:
        limit = LIMITS[part] * args.scale
        command = _command(part, out, limit)
        if isinstance(command, str):
            summary[part] = {"skipped": command}
        else:
            summary[part] = _run(part, command, out, limit)
        (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        print(part, summary[part], flush=True)
        if summary[part] == {"ended": "interrupted"}:
            return 130
    return int(any(isinstance(r, dict) and r.get("code", 0) for r in summary.values()))


def _command(part: str, out: Path, limit: float) -> list[str] | str:
    """What to run, or why not."""
    tests = ["-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
    if part == "build":
        return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if part == "test":
        return [sys.executable, *tests, f"--junitxml={out / 'test.xml'}", "tests"]
    if part == "sanitize":
        tool = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if tool is None:
            return "compute-sanitizer was not found"
        chosen = "test_real_sizes and (7x7 or 4x4 or 250x254)"
        file = "tests/kernels/test_triton_instance_norm.py"
        return [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, *tests, file, "-k", chosen]
    if part == "sweep":
        return [sys.executable, "-m", "benchmarks.sweep_instance_norm", "--out", str(out / "sweep.jsonl"),
                "--seconds", str(0.9 * limit)]  # fmt: skip
    return [sys.executable, "-m", "benchmarks.report", "--out", str(out / "bench.json")]


def _run(part: str, command: list[str], out: Path, limit: float) -> dict[str, object]:
    """Runs one part in a process group of its own, which ends with it."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "FASTGAN_CUDA": "1"}
    environment.pop("TRITON_INTERPRET", None)
    # An allocator's cache would hide reads out of bounds from the sanitizer.
    if part == "sanitize":
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    start = time.monotonic()
    with (out / f"{part}.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            code = process.wait(limit)
        except (subprocess.TimeoutExpired, KeyboardInterrupt) as stop:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if isinstance(stop, KeyboardInterrupt):
                return {"ended": "interrupted"}
            return {"ended": f"stopped after its {limit:.0f} s", "code": 124}
    return {"code": code, "seconds": round(time.monotonic() - start, 1)}


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
