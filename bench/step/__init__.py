"""One training step: its speed, its memory and its parts; `python -m bench.step` measures them."""
