"""Tables in files: reading, encoding, and the models that ``fixntk fit`` saves."""
