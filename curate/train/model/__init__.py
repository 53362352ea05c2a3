"""The policy: layout of sequences, attention, log-probs. Modules here import torch."""
