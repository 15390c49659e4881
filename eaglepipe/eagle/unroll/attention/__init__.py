"""The attention of TTT steps: written plainly, over blocks of slots, over spans of documents, and by varlen kernels."""
