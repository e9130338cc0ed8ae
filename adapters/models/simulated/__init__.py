"""The simulated model: an ideal CML-speaking model with a cheat sheet, in process and as an OpenAI-like server."""
