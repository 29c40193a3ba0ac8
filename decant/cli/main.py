"""The command line `decant`.

Exit codes: 0 done, 1 a stage failed, 2 something that the caller can mend (one line on stderr says what), 130 stopped.

A command is a line of COMMANDS and a module with `main(arguments) -> exit code`. Only that module is imported: Prefect
takes 2 s and DVC 1 s, and nobody should wait for a help text.
"""

import argparse
import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from decant import __version__
from decant.errors import DecantError, did_you_mean
from decant.paths import SCORER, SUSPECTS, TEST


class Parser(argparse.ArgumentParser):
    """An argument parser that reports an error in one line and says where help is."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message} ({self.prog} --help)\n")


@dataclass(frozen=True)
class Command:
    """A command of `decant`: its help, its options and the function that runs it."""

    module: str
    help: str
    examples: str
    add_arguments: Callable[[argparse.ArgumentParser], None]
    anywhere: bool = False
    """Works outside of a workspace, too."""


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", type=_file, metavar="FOLDER", help="the workspace's folder; new or empty")
    parser.add_argument(
        "--source", type=_source, metavar="PATH-OR-NAME",
        help="the data to clean: a folder of images, Parquet, digits, torchvision:CIFAR10 (default: digits)",
    )  # fmt: skip
    parser.add_argument(
        "--upgrade", action="store_true", help="bring the files of a workspace up to date with the installed decant"
    )


def _run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "stages", nargs="*", metavar="STAGE", help="only these stages and what they need (default: all)"
    )
    parser.add_argument(
        "--set", action="append", default=[], metavar="BLOCK.KEY=VALUE",
        help="change a parameter in params.yaml first; may be repeated (docs/parameters.md lists them)",
    )  # fmt: skip
    parser.add_argument(
        "--no-server", action="store_true", help="run without Prefect; only the terminal shows progress"
    )


def _status(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print JSON, for scripts")


def _explain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("id", type=int, metavar="ID", help="a row's id, as audit.csv and the report show it")


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--open", action="store_true", help="show it in the browser")


def _review(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--expert", default="", metavar="NAME", help="name of the expert who answers, where there are several"
    )
    parser.add_argument("--port", type=_port, default=0, help="port of the page on 127.0.0.1 (default: a free one)")
    parser.add_argument("--open", action="store_true", help="show the page in the browser")
    parser.add_argument("--until-answered", action="store_true", help="end when no row waits for an answer any more")
    parser.add_argument("--for-run", action="store_true", help=argparse.SUPPRESS)  # `decant run` has brought it up
    studio = parser.add_mutually_exclusive_group()
    studio.add_argument(
        "--export-label-studio", type=_file, metavar="FILE.json", help="write the open rows as Label Studio tasks"
    )
    studio.add_argument(
        "--import-label-studio", type=_file, metavar="FILE.json", help="add the answers of a Label Studio JSON export"
    )


def _score(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", type=_source, metavar="IMAGES", help="whatever ingest.source takes, or a folder of images"
    )
    parser.add_argument(
        "--labels", type=_file, metavar="CSV",
        help="predictions: columns id,label or file,label (default: the labels that the images have)",
    )  # fmt: skip
    _scorer(parser)
    parser.add_argument("--out", type=_file, default=_file("scores.csv"), metavar="CSV", help="default: scores.csv")
    parser.add_argument(
        "--threshold", type=float, default=0.5, help="a label with less trust is doubtful (default: 0.5)"
    )
    parser.add_argument(
        "--prior", default="batch",
        help="prior probability that a label is right: batch (default: estimated from the labels), uniform or a number",
    )  # fmt: skip


def _serve(parser: argparse.ArgumentParser) -> None:
    _scorer(parser)
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: this machine only)")
    parser.add_argument("--port", type=_port, default=8421, help="default: 8421; 0 takes a free one")
    parser.add_argument(
        "--token", default="", help="token that requests must carry; better set as the variable DECANT_TOKEN"
    )
    parser.add_argument(
        "--prior", default="uniform", help="prior probability that a label is right: uniform (default) or a number"
    )


def _scorer(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--scorer", type=_file, default=SCORER, metavar="FILE",
        help=f"default: {SCORER}, which `decant run verify` writes",
    )  # fmt: skip


def _suspects(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "images", nargs="?", type=_source, default=str(TEST), metavar="IMAGES",
        help=f"whatever ingest.source takes, or a folder of images (default: {TEST})",
    )  # fmt: skip
    parser.add_argument("--count", type=int, default=20, help="images to show and write (default: 20)")
    parser.add_argument("--limit", type=int, default=1000, help="images to examine, drawn at random (default: 1000)")
    _scorer(parser)
    parser.add_argument(
        "--out", type=_file, default=SUSPECTS, metavar="CSV",
        help=f"default: {SUSPECTS}; the images go to the folder of the same name",
    )  # fmt: skip


def _file(text: str) -> Path:
    """An absolute path, resolved before `go_to_workspace` changes the folder."""
    return Path(text).expanduser().absolute()


def _port(text: str) -> int:
    if text.isdecimal() and int(text) < 2**16:
        return int(text)
    raise argparse.ArgumentTypeError(f"a number from 0 to 65535 expected, {text!r} found")


def _source(text: str) -> str:
    return str(_file(text)) if _file(text).exists() else text


def _deploy(_parser: argparse.ArgumentParser) -> None:
    """It has no arguments: prefect.yaml holds the schedule."""


COMMANDS = {
    "init": Command(
        "decant.cli.init",
        "make a workspace: a folder with the pipeline and its parameters, for your data",
        """  decant init cleaning --source ~/photos           then: cd cleaning && decant run
  decant init try --source digits                  scikit-learn's digits, to try it out
  decant init --upgrade                            after an upgrade of decant, in the workspace""",
        _init,
        anywhere=True,
    ),
    "run": Command(
        "decant.cli.run",
        "bring every stage up to date: clean the data, retrain, measure, write the report",
        """  decant run                                       every stage that is not up to date
  decant run --set ingest.source=~/photos --set 'simulate.attacks=[]' --set verify.expert=person
  decant run --set train.epochs=20 --set verify.threshold=0.9
  decant run verify                                up to the stage `verify`
  decant run --no-server                           without Prefect (as plain dvc repro)""",
        _run,
    ),
    "status": Command(
        "decant.cli.status",
        "list which stages are stale, and why",
        """  decant status
  decant status --json | jq '.[] | select(.state == "stale") | .stage'""",
        _status,
    ),
    "explain": Command(
        "decant.cli.explain",
        "show one row at each stage: its image, label, score, verdict and reason",
        """  decant explain 1234""",
        _explain,
    ),
    "review": Command(
        "decant.review",
        "label the rows that label verification asks about, on a page in the browser",
        """  decant review                                    prints the page's address; Ctrl-C ends it
  decant review --open --expert anna               one of several experts
  decant review --until-answered && decant run     goes on when all rows are answered
  decant review --export-label-studio tasks.json   for a team that uses Label Studio
  decant review --import-label-studio export.json""",
        _review,
    ),
    "suspects": Command(
        "decant.cli.suspects",
        "list test images whose prediction may be due to poison; you choose which are wrong",
        """  decant suspects                                  the 20 most suspicious test images
  decant suspects photos/ --count 50               the 50 most suspicious of a folder
  decant suspects --limit 5000                     examine more of them""",
        _suspects,
    ),
    "report": Command(
        "decant.cli.report",
        "print the path of the report, or open it in the browser",
        """  decant report                                    prints the path
  decant report --open                             shows it in the browser""",
        _report,
    ),
    "score": Command(
        "decant.cli.score",
        "score how far the labels that a model predicted can be trusted; write a CSV",
        """  decant score photos/ --labels predictions.csv       columns file,label
  decant score data/ingest/test.parquet               the labels in the table itself
  decant score digits --threshold 0.9 --out doubts.csv
  decant score photos/ --labels p.csv --scorer scorer.safetensors    needs no workspace""",
        _score,
        anywhere=True,
    ),
    "serve": Command(
        "decant.serve.app",
        "score labels over HTTP: POST /score",
        """  decant serve                                     on http://127.0.0.1:8421
  DECANT_TOKEN=secret decant serve --host 0.0.0.0 --port 80
  curl -s http://127.0.0.1:8421/classes""",
        _serve,
        anywhere=True,
    ),
    "deploy": Command(
        "flows.deploy",
        "register the nightly run of prefect.yaml with the Prefect server",
        """  decant deploy
  prefect worker start --pool decant               the process that does the work""",
        _deploy,
    ),
}


def parser() -> Parser:
    """The parser of the whole command line."""
    whole = Parser(
        prog="decant",
        description="Clean a labelled image dataset: purify poisoned pixels, verify labels, trace wrong predictions to "
        "the training rows that cause them, and retrain without those rows.",
        epilog="decant COMMAND --help has examples. Exit codes: 0 done, 1 a stage failed, 2 the input is at fault.",
    )
    whole.add_argument("--version", action="version", version=f"decant {__version__}")
    commands = whole.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=Parser)
    for name, command in COMMANDS.items():
        one = commands.add_parser(
            name, help=command.help, description=f"{command.help[0].upper()}{command.help[1:]}.",
            epilog=f"examples:\n{command.examples}", formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        command.add_arguments(one)
    return whole


def go_to_workspace(*, required: bool = True) -> None:
    """Changes into the workspace or checkout that we stand in: the nearest folder with a dvc.yaml, here or above.

    Its `flows` and `tasks` are then the ones that are imported. Raises: DecantError where there is no such folder.
    """
    here = Path.cwd()
    for folder in (here, *here.parents):
        if (folder / "dvc.yaml").is_file():
            os.chdir(folder)
            sys.path.insert(0, str(folder))
            return
    if required:
        raise DecantError(f"{here}: no workspace (no dvc.yaml here or above); make one: decant init FOLDER")


def what_to_install(missing: ModuleNotFoundError) -> DecantError:
    """How to get what a command can't import. Raises: `missing` where no user can mend it."""
    package = (missing.name or "").split(".")[0]
    if package in ("flows", "tasks"):
        return DecantError(
            f"{Path.cwd()}: not a workspace: dvc.yaml, but no {package}/ here; decant init FOLDER makes one"
        )
    if package in ("prefect", "dvc", "networkx", "httpx"):
        return DecantError(f"this command needs {package}: pip install 'decant[pipeline]'")
    raise missing


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    whole = parser()
    if words and words[0] not in COMMANDS and not words[0].startswith("-"):
        whole.error(f"no command {words[0]!r}; known: {', '.join(COMMANDS)}{did_you_mean(words[0], COMMANDS)}")
    arguments = whole.parse_args(words or ["--help"])
    try:
        go_to_workspace(required=not COMMANDS[arguments.command].anywhere)
        return run_command(arguments)
    except DecantError as error:
        print(f"decant: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("decant: stopped; finished stages are kept, `decant run` goes on from there", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `decant status | head`: the reader has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def run_command(arguments: argparse.Namespace) -> int:
    """Runs a command. Raises: DecantError also where a library or a folder is missing that it needs."""
    try:
        command = importlib.import_module(COMMANDS[arguments.command].module)
        return int(command.main(arguments))
    except ModuleNotFoundError as missing:
        raise what_to_install(missing) from missing


if __name__ == "__main__":
    raise SystemExit(main())
