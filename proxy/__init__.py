"""The proxy: server, driver, executor, recorder, command line."""
