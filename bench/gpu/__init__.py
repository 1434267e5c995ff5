"""GPU kernels: what compilers make of them, held to budgets, and the parts of the check on a GPU."""
