"""Load tests on loopback: a fake upstream, a load client, and what a process costs while it serves."""
