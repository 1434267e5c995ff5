"""Other libraries' networks, trained by their own trainers with and without distilling."""
