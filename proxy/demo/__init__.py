"""`asynclm demo`: BFCL tasks through the official client, the proxy and the simulated model, policy against policy."""
