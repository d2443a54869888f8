"""Everything that needs a GPU, in calls that can be stopped at any time.

``python benchmarks/gpu_run.py OUT [--parts build,test,…] [--seconds 570] [--commit SHA] [--dry-run]``

Needs torch, Triton, NumPy, pytest, nvcc, CMake, Ninja and pybind11; no network, and fastgan need not be installed.
``bench`` also needs pytest-benchmark, SciPy, Pillow, safetensors and matplotlib; POT is left out where it is missing.
Each part runs in a process group of its own, within its own limit and what is left of ``--seconds``; the whole ends in
that time whatever its parts do. After each part, and every 30 seconds during one, OUT/results.tar.gz is written anew:
how every part ended, what it printed (the last 512 KiB) and what it found, in one archive far under 16 MiB. A part
whose time is up is interrupted, so that it writes what it has, and ended twenty seconds later. Parts:

    build      the extension in place, with FASTGAN_CUDA=1, for the machine's own architecture
    test       the tests marked gpu                              -> test.xml
    memcheck   compute-sanitizer over a test of each regime of the extension's and of Triton's kernels
    racecheck  the same for races in shared memory, over fewer
    sweep      launch settings of the instance norm's kernels    -> sweep.jsonl, and the launch table that follows
    bench      every benchmark against eager and torch.compile   -> bench.json, its report and plots
    scaling    time over size and batch                          -> into bench.json
    profile    where a training step's time goes                 -> into bench.json

A machine that forgets between calls of ten minutes gets, say, ``--parts build,test,memcheck,racecheck``, then
``--parts build,sweep``, then ``--parts build,bench`` and ``--parts build,scaling,profile``. ``--dry-run`` goes through
all of it without a GPU: the extension is built with whatever compilers are there, tests marked gpu are skipped,
settings are enumerated on meta tensors, one benchmark runs.

Nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMITS = {  # seconds
    "build": 240, "test": 300, "memcheck": 150, "racecheck": 120, "sweep": 400, "bench": 540, "scaling": 150,
    "profile": 150,
}  # fmt: skip
LOG_TAIL = 512 * 1024
PACK_EVERY = 30.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 20.0  # from a part's interruption to its end
MEMCHECK = "(test_real_sizes and (7x7 or 4x4 or 250x254)) or test_device_weighted or test_device_double_backward"
RACECHECK = "(test_real_sizes and 4x4) or test_device_double_backward"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder: results.tar.gz is written there")
    parser.add_argument("--parts", default=",".join(LIMITS), help="comma-separated, in the order to run")
    parser.add_argument("--seconds", type=float, default=570, help="when all of it must have ended")
    parser.add_argument("--commit", help="what is measured, where there is no git repository")
    parser.add_argument("--dry-run", action="store_true", help="go through the parts on a machine without a GPU")
    args = parser.parse_args()
    parts = args.parts.split(",")
    if unknown := set(parts) - set(LIMITS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for number in _SIGNALS:  # in the background SIGINT is ignored, by the parts too
        signal.signal(number, _interrupt)
    end = time.monotonic() + args.seconds
    summary: dict[str, object] = {"commit": args.commit or _commit(), "python": sys.version.split()[0]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for part in parts:
            left = min(LIMITS[part], end - time.monotonic() - GRACE - 5)
            command = _command(part, work, left, args.dry_run)
            if left < 10:
                summary[part] = {"skipped": "no time left"}
            elif isinstance(command, str):
                summary[part] = {"skipped": command}
            else:
                summary[part] = {"ended": "was still running"}
                pack = functools.partial(_pack, work, summary, out / "results.tar.gz")
                summary[part] = _run(part, command, work, left, str(summary["commit"]), pack)
            _pack(work, summary, out / "results.tar.gz")
            print(part, summary[part], flush=True)
            if summary[part] == {"ended": "interrupted"}:
                return 130
    return int(any(isinstance(r, dict) and r.get("code", 0) for r in summary.values()))


def _command(part: str, work: Path, limit: float, dry: bool) -> list[str] | str:
    """What to run, or why not."""
    marked = sorted(
        str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()
    )
    # Verbose: a log that ends anywhere names the tests that have ended.
    tests = ["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider", *marked]
    report = [sys.executable, "-m", "benchmarks.report", "--out", str(work / "bench.json"), "--parts", part]
    if part == "build":
        return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if part == "test":
        # Side by side, kernels are compiled on several cores, and an illegal access spoils only its own process.
        workers = ["-n", "6"] if importlib.util.find_spec("xdist") is not None else []
        return [sys.executable, *tests, *workers, f"--junitxml={work / 'test.xml'}"]
    if part in ("memcheck", "racecheck"):
        places = (os.environ.get("PATH", ""), "/usr/local/cuda/bin", "/usr/local/cuda/compute-sanitizer")
        tool = shutil.which("compute-sanitizer", path=os.pathsep.join(places))
        if tool is None:
            return "compute-sanitizer was not found"
        chosen = ["-k", MEMCHECK if part == "memcheck" else RACECHECK]
        return [tool, "--tool", part, "--error-exitcode", "9", sys.executable, *tests, *chosen]
    if part == "sweep":
        sweep = [sys.executable, "-m", "benchmarks.sweep_instance_norm", "--out", str(work / "sweep.jsonl")]
        return [*sweep, "--table", "--seconds", str(0.9 * limit), *(["--dry-run"] if dry else [])]
    if part == "bench":
        needed = ("pytest_benchmark", "scipy", "PIL", "safetensors", "matplotlib")
        if missing := [name for name in needed if importlib.util.find_spec(name) is None]:
            return f"missing: {', '.join(missing)}"
        return [*report, "--", "-k", "interpolate_and_penalty and 256 and eager"] if dry else report
    return "takes too long for a dry run" if dry else report


def _run(
    part: str, command: list[str], work: Path, limit: float, commit: str, pack: Callable[[], None]
) -> dict[str, object]:
    """Runs one part in a process group of its own, which ends with it; packs what there is now and then."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = os.environ | {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "FASTGAN_COMMIT": commit}
    environment.pop("TRITON_INTERPRET", None)
    # cmake and ninja lie beside the interpreter where its environment is not activated; nvcc is not always on the path.
    places = (str(Path(sys.executable).parent), environment.get("PATH", ""), "/usr/local/cuda/bin")
    environment["PATH"] = os.pathsep.join(filter(None, places))
    if architecture := _architecture():
        environment |= {"FASTGAN_CUDA": "1", "FASTGAN_CUDA_ARCHITECTURES": architecture}
    # An allocator's cache would hide reads out of bounds from the sanitizer.
    if part in ("memcheck", "racecheck"):
        environment["PYTORCH_NO_CUDA_MEMORY_CACHING"] = "1"
    # Benchmarks that have not begun by then are left out, so that the others' results are written.
    environment["FASTGAN_BENCH_UNTIL"] = str(time.time() + 0.85 * limit)
    start = time.monotonic()
    with (work / f"{part}.log").open("w") as log:
        # Interrupted while it starts, a part would be left that nobody ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
            preexec_fn=functools.partial(signal.pthread_sigmask, signal.SIG_UNBLOCK, _SIGNALS),
        )  # fmt: skip
        try:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            while (left := start + limit - time.monotonic()) > 0:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    code = process.wait(min(PACK_EVERY, left))
                    return {"code": code, "seconds": round(time.monotonic() - start, 1)}
                pack()
        except KeyboardInterrupt:
            _end(process)
            return {"ended": "interrupted"}
        _end(process)
        return {"ended": f"stopped after {limit:.0f} s", "code": 124}


def _end(process: subprocess.Popen[bytes]) -> None:
    """Interrupts the part, as Ctrl-C does: pytest then writes what it has. Ends it and whatever it started."""
    os.killpg(process.pid, signal.SIGINT)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _pack(work: Path, summary: dict[str, object], archive: Path) -> None:
    """Writes the archive anew, and only then puts it in the place of the last one."""
    (work / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    fresh = archive.with_suffix(".part")
    with tarfile.open(fresh, "w:gz") as packed:
        for path in filter(Path.is_file, sorted(work.rglob("*"))):
            text = path.read_bytes()  # of now: a part may be writing
            if path.suffix == ".log" and len(text) > LOG_TAIL:
                text = b"...\n" + text[-LOG_TAIL:]
            entry = tarfile.TarInfo(str(path.relative_to(work)))
            entry.size, entry.mtime = len(text), int(time.time())
            packed.addfile(entry, io.BytesIO(text))
    fresh.replace(archive)


def _architecture() -> str | None:
    """The compute capability of the first GPU, as CMake has it; None without one."""
    code = "import torch; c = torch.cuda.is_available() and torch.cuda.get_device_capability(); c and print(*c, sep='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
