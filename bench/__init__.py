"""Speed, memory and agreement of the operators in `gkd_fast.ops`; `python -m bench.run` measures them."""
