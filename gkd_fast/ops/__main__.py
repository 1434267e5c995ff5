"""`python -m gkd_fast.ops`: which backends run here, and why the others do not."""

from gkd_fast.ops import backends

for name, status in backends().items():
    print(f"{name:<10} {status}")
