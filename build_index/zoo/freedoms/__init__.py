"""What a function leaves free in its weights, one module for each kind of freedom; `disguises` puts them together."""
