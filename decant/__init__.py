"""Decant pours the clean data off the poison.

The library: tensors and Arrow tables in and out. Only its command line, `decant.cli`, knows Prefect and DVC, so that
all else runs wherever PyTorch runs. Nothing heavy is imported here; import from the module you need::

    from decant.labeltrust.verify import verify
"""

__version__ = "0.1.0"
