"""How trainings of a search are started, watched and told."""
