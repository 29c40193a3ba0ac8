"""`decant serve`: score labels over HTTP."""
