"""Real processes, real sockets and a real disk, and what breaks them, drawn from a seed."""
