"""From log-probabilities to words: the search, all that steers it, and how sure it is."""
