"""Run the stages of dvc.yaml: one by one through DVC, and as the Prefect flow `clean`.

dvc.yaml is the one definition of the pipeline; nothing here lists the stages.
"""
