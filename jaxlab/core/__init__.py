"""The framework-free core: matrices, rules, registry, costs."""
