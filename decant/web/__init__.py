"""What both web applications need, `decant review` and `decant serve`: a socket to listen on, limits on requests."""
