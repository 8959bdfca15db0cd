"""Lie or change? What each explainer still says of a model that was made to fool it, at a bounded cost in decisions."""
