"""Decant pours the clean data off the poison.

The library: tensors and Arrow tables in and out. It never imports prefect, dvc, ``tasks`` or ``flows`` (its command line
alone does), so it runs wherever PyTorch runs. Nothing heavy is imported here; import from the room you need::

    from decant.labeltrust.verify import verify
"""

__version__ = "0.1.0"
