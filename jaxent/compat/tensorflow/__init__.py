"""TensorFlow: being written."""
