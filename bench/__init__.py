"""Measurements: the paper's evaluation on the real proxy (`asynclm bench`), and what the proxy itself costs."""
