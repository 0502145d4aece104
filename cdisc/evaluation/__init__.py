"""Judging samples: attributes, precision and recall, distance to the query; and the baselines."""
