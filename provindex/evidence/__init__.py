"""Our own tests: statistics on the weights with exact or conformal p-values. They decide."""
