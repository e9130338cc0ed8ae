"""Models that run in this process: the step loop, the token monitor, and the interface to the engine below."""
