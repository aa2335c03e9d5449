"""State machines against a model or an ordinary directory."""
