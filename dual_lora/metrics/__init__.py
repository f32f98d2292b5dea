"""Scores. Each module takes predictions and right answers and returns {metric: value}; none knows tasks or models."""
