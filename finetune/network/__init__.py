"""Networks of every task: first weights, maps of several strides, what is frozen, trained weights."""
