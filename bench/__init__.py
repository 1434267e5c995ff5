"""Speed and memory of the operators and of a training step, and what GPU compilers made; README.md has the commands."""
