"""What ``attention_cost.py`` measures and how it tells."""
