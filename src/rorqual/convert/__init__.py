"""Import and export of checkpoints. Hugging Face folders and GGUF files are converted to run directories, and run directories
to Hugging Face folders and GGUF files.

Import and export also convert the tokenizer and the chat template. Tensors are converted in slices, so a conversion needs
little memory even for large models. Code in a checkpoint is never run, and pickles are never read.
"""
