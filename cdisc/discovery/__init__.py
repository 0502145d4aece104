"""From one picture to a density over pictures like it: modes, Gaussians, selection, product (arXiv 2605.07078)."""
