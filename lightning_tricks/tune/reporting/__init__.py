"""What a search writes down and shows."""
