"""`decant review`: a page on which a person answers the questions of `verify`; export to and import from Label Studio.

The page's code (FastAPI, 1 s) is loaded only when it is served. It never loads torch.
"""

import argparse

from decant.errors import DecantError


def main(arguments: argparse.Namespace) -> int:
    arguments.expert = expert_name(arguments.expert)
    if arguments.export_label_studio or arguments.import_label_studio:
        from decant.review.labelstudio import exchange

        return exchange(arguments)
    from decant.review.serving import serve

    return serve(arguments)


def expert_name(text: str) -> str:
    """The name as it goes into the file of decisions. Raises DecantError for one that could not be read back."""
    name = text.strip()
    if len(name) > 60 or not name.isprintable():
        raise DecantError("--expert: a name of at most 60 printable characters expected")
    return name
