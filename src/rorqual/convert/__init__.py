"""Import and export checkpoints with tokenizer and chat template: Hugging Face folders and GGUF files to and from run directories.

Tensors are converted in slices, so memory holds only a few slices of a model of any size. No code from a checkpoint is run,
and no pickle is read.
"""
