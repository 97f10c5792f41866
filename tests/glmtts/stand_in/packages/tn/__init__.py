"""WeTextProcessing, as far as upstream needs it."""
