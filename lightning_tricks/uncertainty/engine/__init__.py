"""Monte-Carlo sampling of any module."""
