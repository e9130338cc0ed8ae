"""The benchmark of the local engine: what injection, batching and the token monitor cost on a real model."""
