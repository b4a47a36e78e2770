"""Checkpoints in and out, with tokenizer and chat: Hugging Face folders and GGUF files to run directories, and back.

Tensors travel slice by slice: whatever the size of a model, a few slices of it are in memory. Nothing that comes with a
checkpoint is run, and no pickle is read.
"""
