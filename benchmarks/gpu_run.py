"""Everything that needs a GPU, in calls that can be stopped at any time.

``python benchmarks/gpu_run.py OUT [--call 1 | --parts build,test,…] [--seconds 530] [--commit SHA] [--dry-run]``

Needs torch, Triton, NumPy, pytest, nvcc, CMake, Ninja and pybind11; no network, and fastgan need not be installed.
``bench`` also needs pytest-benchmark, SciPy, Pillow, safetensors and matplotlib; POT is left out where it is missing.
Each part runs in a process group of its own, within its own limit and what is left of ``--seconds``; the whole ends in
that time whatever its parts do. After each part, and every 30 seconds during one, OUT/results.tar.gz is written anew:
how every part ended, what it printed (the last 512 KiB) and what it found, in one archive under 16 MiB. A part whose
time is up is interrupted, so that it writes what it has, and ended twenty seconds later. The last thing printed is a
table of the parts, with the ends of logs. Parts:

    build      the extension in place, with FASTGAN_CUDA=1, for the machine's own architecture; what an earlier call
               built of the same sources is used again
    test       the tests marked gpu                              -> test.xml
    memcheck   compute-sanitizer over a test of each regime of the extension's and of Triton's kernels
    racecheck  the same for races in shared memory, over fewer
    bench      every benchmark against eager and torch.compile   -> bench.json, its report and plots
    profile    where a training step's time goes                 -> into bench.json
    scaling    time over size and batch                          -> into bench.json
    sweep      launch settings of the instance norm's kernels    -> sweep.jsonl, and the launch table that follows

All of it takes three calls of under ten minutes, one after another and each with an OUT of its own: ``--call 1`` builds
and shows that results are right, ``--call 2`` measures, ``--call 3`` says where time goes and tunes. ``--dry-run`` goes
through the parts without a GPU: the extension is built with whatever compilers are there, tests marked gpu are skipped,
settings are enumerated on meta tensors, one benchmark runs. Without it and without a GPU nothing is begun.

Nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.util
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
STAMP = ROOT / "build" / "gpu_run.stamp"  # what was built last
LIMITS = {  # seconds
    "build": 240, "test": 220, "memcheck": 150, "racecheck": 100, "bench": 520, "profile": 150, "scaling": 100,
    "sweep": 450,
}  # fmt: skip
CALLS = {1: "build,test,memcheck,racecheck", 2: "build,bench", 3: "build,profile,scaling,sweep"}
LOG_TAIL = 512 * 1024
ARCHIVE = 15 * 2**20  # bytes
SHOWN = {"bench": 45, "profile": 45, "sweep": 30}  # lines of a log's end that are printed at the end, if all goes well
SHOWN_OF_FAILURES = 20
PACK_EVERY = 30.0  # seconds
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
GRACE = 20.0  # from a part's interruption to its end
MEMCHECK = "(test_real_sizes and (7x7 or 4x4 or 250x254)) or test_device_weighted or test_device_double_backward"
RACECHECK = "(test_real_sizes and 4x4) or test_device_double_backward"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="a folder: results.tar.gz is written there")
    chosen = parser.add_mutually_exclusive_group()
    chosen.add_argument("--call", type=int, choices=CALLS, help="; ".join(f"{k}: {v}" for k, v in CALLS.items()))
    chosen.add_argument("--parts", default=",".join(LIMITS), help="comma-separated, in the order to run; default: all")
    parser.add_argument("--seconds", type=float, default=530, help="when all of it must have ended")
    parser.add_argument("--commit", help="what is measured, where there is no git repository")
    parser.add_argument("--dry-run", action="store_true", help="go through the parts on a machine without a GPU")
    args = parser.parse_args()
    parts = (CALLS[args.call] if args.call else args.parts).split(",")
    if unknown := set(parts) - set(LIMITS):
        parser.error(f"no such parts: {', '.join(sorted(unknown))}")
    end = time.monotonic() + args.seconds
    if _architecture() is None and not args.dry_run:
        print(f"No GPU, nothing done (--dry-run goes through the parts without one): {_why_no_gpu()}")
        return 2
    out = args.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    for number in _SIGNALS:  # in the background SIGINT is ignored, by the parts too
        signal.signal(number, _interrupt)
    summary: dict[str, Any] = {"commit": args.commit or _commit(), "python": sys.version.split()[0], "gpu": [_gpu()]}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        pack = functools.partial(_pack, work, summary, out / "results.tar.gz")
        for part in parts:
            left = min(LIMITS[part], end - time.monotonic() - GRACE - 5)
            command = _command(part, work, left, args.dry_run)
            if left < 10:
                summary[part] = {"skipped": "no time left"}
            elif isinstance(command, str):
                summary[part] = {"skipped": command}
            else:
                summary[part] = {"ended": "was still running"}
                summary[part] = _run(part, command, work, left, summary["commit"], pack)
                if part == "build" and summary[part].get("code") == 0:
                    STAMP.parent.mkdir(exist_ok=True)
                    STAMP.write_text(_sources())
            pack()
            print(part, summary[part], flush=True)
            if summary[part] == {"ended": "interrupted"}:
                break
        summary["gpu"].append(_gpu())
        pack()
        print(_table({part: summary[part] for part in parts if part in summary}, work), flush=True)
    if {"ended": "interrupted"} in summary.values():
        return 130
    return int(any(isinstance(r, dict) and r.get("code", 0) for r in summary.values()))


def _command(part: str, work: Path, limit: float, dry: bool) -> list[str] | str:
    """What to run, or why not."""
    marked = sorted(
        str(p.relative_to(ROOT)) for p in (ROOT / "tests").rglob("test_*.py") if "mark.gpu" in p.read_text()
    )
    # Verbose: a log that ends anywhere names the tests that have ended. A file that cannot be imported, after a build
    # that failed, say, does not keep the others from running.
    tests = ["-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p", "no:cacheprovider"]
    tests += ["--continue-on-collection-errors", *marked]
    report = [sys.executable, "-m", "benchmarks.report", "--out", str(work / "bench.json"), "--parts", part]
    if part == "build":
        if _built():
            return "built by an earlier call, from the same sources"
        return [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
    if part == "test":
        # Side by side, kernels are compiled on several cores, and an illegal access spoils only its own process.
        workers = ["-n", str(min(12, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") is not None else []
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
        return [*report, "--", "-k", "interpolate_and_penalty and 256 and (fastgan or eager)"] if dry else report
    return "takes too long for a dry run" if dry else report


def _run(
    part: str, command: list[str], work: Path, limit: float, commit: str, pack: Callable[[], None]
) -> dict[str, Any]:
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
    # Cases that have not begun by then are left out, so that the others' results are written and drawn.
    environment["FASTGAN_BENCH_UNTIL"] = str(time.time() + 0.9 * limit)
    start = time.monotonic()
    with (work / f"{part}.log").open("w") as log:
        # Interrupted while it starts, a part would be left that nobody ends.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            preexec_fn=_own_group,
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


def _own_group() -> None:
    """Not a session of its own: where whole sessions are ended, a part must not outlive a run that was killed."""
    os.setpgid(0, 0)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


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


def _pack(work: Path, summary: dict[str, Any], archive: Path) -> None:
    """Writes the archive anew, and only then puts it in the place of the last one."""
    files = {}
    for path in filter(Path.is_file, work.rglob("*")):
        text = path.read_bytes()  # of now: a part may be writing
        if path.suffix == ".log" and len(text) > LOG_TAIL:
            text = b"...\n" + text[-LOG_TAIL:]
        files[str(path.relative_to(work))] = text
    left_out, room = [], ARCHIVE
    for name in sorted(files, key=lambda name: len(files[name])):
        room -= len(files[name])
        if room < 0:
            left_out.append(name)
    more = {"left out, too large": left_out} if left_out else {}
    files["summary.json"] = (json.dumps(summary | more, indent=1) + "\n").encode()
    fresh = archive.with_suffix(".part")
    with tarfile.open(fresh, "w:gz") as packed:
        for name in sorted(files.keys() - set(left_out)):
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = len(files[name]), int(time.time())
            packed.addfile(entry, io.BytesIO(files[name]))
    fresh.replace(archive)


# --- what is printed at the end -----------------------------------------------------------------------------------


def _table(results: dict[str, dict[str, Any]], work: Path) -> str:
    """How each part ended and what it says of itself; the ends of the logs of parts that failed or have tables."""
    lines, tails = [], []
    for part, result in results.items():
        log = work / f"{part}.log"
        text = log.read_text(errors="replace") if log.exists() else ""
        failed = bool(result.get("code", 0)) or "ended" in result
        ended = result.get("ended") or ("FAILED" if failed else "skipped" if "skipped" in result else "ok")
        lines.append((part, ended, f"{result.get('seconds', '')}", result.get("skipped") or _said(text)))
        shown = SHOWN_OF_FAILURES if failed else SHOWN.get(part, 0)
        if text and shown:
            tails += [f"--- the end of {part}.log", *(line[:160] for line in text.splitlines()[-shown:])]
    widths = [max(len(line[i]) for line in lines) for i in range(3)]
    table = ["  ".join([*map(str.ljust, line, widths), line[3][:140]]) for line in lines]
    return "\n".join([*tails, "--- parts", *table])


def _said(log: str) -> str:
    """The verdicts of pytest and compute-sanitizer, or the last line."""
    verdicts = re.findall(
        r"^=+ (?:(ERROR SUMMARY: .*|.*HAZARD.*SUMMARY.*|.* in [\d.]+s.*?)(?: =+)?)$", log, re.MULTILINE
    )
    return "; ".join(verdicts[-2:]) or next((line for line in reversed(log.splitlines()) if line.strip()), "")


# --- the machine --------------------------------------------------------------------------------------------------


def _built() -> bool:
    """Whether an earlier call has built these sources for this machine, and the modules can be imported."""
    if not STAMP.exists() or STAMP.read_text() != _sources():
        return False
    modules = "import fastgan._C" + (", fastgan._cuda" if _architecture() else "")
    return subprocess.run([sys.executable, "-c", modules], cwd=ROOT, capture_output=True).returncode == 0


def _sources() -> str:
    """What the extension is built from and for."""
    files = [ROOT / "CMakeLists.txt", ROOT / "setup.py", *sorted(filter(Path.is_file, (ROOT / "csrc").rglob("*")))]
    content = hashlib.sha256()
    for path in files:
        content.update(f"{path.relative_to(ROOT)} {path.stat().st_size}\n".encode() + path.read_bytes())
    return f"{content.hexdigest()} {sysconfig.get_config_var('EXT_SUFFIX')} {_architecture()}\n"


@functools.cache
def _architecture() -> str | None:
    """The compute capability of the first GPU, as CMake has it; None without one."""
    code = "import torch; c = torch.cuda.is_available() and torch.cuda.get_device_capability(); c and print(*c, sep='')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return done.stdout.strip() or None


def _why_no_gpu() -> str:
    done = subprocess.run([sys.executable, "-c", "import torch; torch.cuda.init()"], capture_output=True, text=True)
    return (done.stderr.strip().splitlines() or ["torch.cuda.is_available() is False"])[-1]


def _gpu() -> str:
    """What figures depend on: the driver, and the state that the device is in."""
    facts = "name,driver_version,clocks.sm,clocks.mem,temperature.gpu,power.draw,utilization.gpu,memory.used"
    tool = shutil.which("nvidia-smi", path=os.pathsep.join((os.environ.get("PATH", ""), "/usr/local/nvidia/bin")))
    if tool is None:
        return "nvidia-smi was not found"
    try:
        done = subprocess.run(
            [tool, f"--query-gpu={facts}", "--format=csv"], capture_output=True, text=True, timeout=20
        )
    except subprocess.TimeoutExpired:
        return "nvidia-smi did not answer"
    return done.stdout.strip() or done.stderr.strip()


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


if __name__ == "__main__":
    sys.exit(main())
