"""The pipeline for people: the Prefect flow `clean`, the local server, and the command line `decant`.

dvc.yaml is the one definition of the pipeline; this room only interprets it.
"""
