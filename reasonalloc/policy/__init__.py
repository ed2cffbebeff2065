"""What is kept: budgets of layers and heads, the wave, the cut."""
