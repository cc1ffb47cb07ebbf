"""Golden packs: folders with a model, inputs, the specification's outputs and their budgets, for ports of any kind."""
