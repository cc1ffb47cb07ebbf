"""Cases: the inputs, weights and configs that a subject is examined with, drawn or stored."""
