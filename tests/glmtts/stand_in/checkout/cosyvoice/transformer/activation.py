"""The stand-in needs no activations of its own."""
