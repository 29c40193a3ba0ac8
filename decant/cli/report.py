"""`decant report`: where the report is, or the report itself in the browser."""

import argparse
import webbrowser

from decant.errors import DecantError
from decant.paths import REPORT


def main(arguments: argparse.Namespace) -> int:
    if not REPORT.is_file():
        raise DecantError(f"{REPORT}: no report yet; `decant run` writes it")
    path = REPORT.resolve()
    print(path)
    if arguments.open and not webbrowser.open(path.as_uri()):
        raise DecantError(f"no browser could be started; open {path.as_uri()} yourself")
    return 0
