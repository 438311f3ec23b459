"""Tables as people have them: reading, encoding, and the models that ``fixntk fit`` saves."""
