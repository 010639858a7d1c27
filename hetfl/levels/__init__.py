"""Levels: sets of them, levels that fit budgets, sizes, and tables of what each costs."""
