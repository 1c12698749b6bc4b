"""Monte-Carlo dropout: the engine, measures of uncertainty, metrics."""
