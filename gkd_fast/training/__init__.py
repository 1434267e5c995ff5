"""Training of one detector, alone or distilled."""
