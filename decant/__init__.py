"""Decant pours the clean data off the poison.

The library: tensors and Arrow tables in and out. It never imports prefect, dvc, ``tasks`` or ``flows``, so it runs
wherever PyTorch runs. Nothing heavy is imported here; import the room you need::

    from decant import dvae, labeltrust, influence
"""

__version__ = "0.1.0"
