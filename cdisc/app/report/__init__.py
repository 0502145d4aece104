"""What a run leaves behind: a documented results file, figures and one self-contained page."""
