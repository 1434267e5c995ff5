"""The operators of `gkd_fast.ops` beside their baselines; `python -m bench.run` measures them."""
