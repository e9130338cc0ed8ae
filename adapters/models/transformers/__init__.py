"""The local engine on torch and transformers. Nothing here is imported before a model is loaded: see `load`."""
