"""Keras: being written."""
