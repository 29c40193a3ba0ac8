"""The stages: one small file each. Read files, one library call, write files.

A stage is ``tasks/<stage>.py`` with one function ``run``. Its keyword-only signature is the whole contract:
``Path`` arguments are command-line options (dvc.yaml says which files), ``seed`` and the settings dataclasses are
blocks of params.yaml. It writes into ``out``, a folder that appears under its real name only when the stage has
succeeded, and returns its summary, which is written last, as ``summary.json``.

Never imports prefect or dvc.
"""
