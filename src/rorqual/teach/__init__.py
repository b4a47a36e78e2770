"""From a file of examples to a trained model: read and check the examples."""
