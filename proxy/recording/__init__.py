"""Recordings: what a run left behind, written to the store as it happens, served again, or run again otherwise."""
