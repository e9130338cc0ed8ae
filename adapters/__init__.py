"""Everything that touches a foreign system: models, tools."""
