"""The run machine: what happens in one run, as events in and actions out."""
