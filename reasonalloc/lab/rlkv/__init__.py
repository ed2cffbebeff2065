"""Training of gates that tell full heads from local ones: RLKV (arXiv 2510.08525), DuoAttention (2410.10819)."""
