"""Weight initialisation: rules, by name or by looking at the net."""
